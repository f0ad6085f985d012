"""Triton backend: the ops on an NVIDIA GPU, or on a CPU under Triton's interpreter."""

from branchline.kernels.triton.ops import TritonOps

__all__ = ["TritonOps"]
