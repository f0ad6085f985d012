"""Reference backend: the torch meaning of every op."""

from branchline.kernels.reference.ops import ReferenceOps

__all__ = ["ReferenceOps"]
