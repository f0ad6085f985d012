"""Kernels: one typed op each; the reference is the meaning, other backends are the speed."""
