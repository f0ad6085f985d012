"""How a module's matrices are cut where the layer itself is cut over several devices.

A layer whose outputs are split keeps A whole and has its rows of B; one whose inputs are split has
its columns of A and keeps B whole, so that what the devices add belongs into the sum that the layer
makes anyway; an embedding whose vocabulary is split has its tokens' columns of A. Either way no
device sends anything that it would not send without adapters.

Law: what the parts give, put together as the layer's own parts are, is what the whole gives.
"""

from __future__ import annotations

from typing import Literal

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.lora.layout import LowRank

Split = Literal["outputs", "inputs"]

_INPUTS = ("o_proj", "down_proj", "embed_tokens")


def split_of(module: str) -> Split:
    """How the layer of a module is cut: blocks begin with split outputs and end with split inputs;
    the inputs of an embedding are its vocabulary, the outputs of the head are."""
    return "inputs" if module.endswith(_INPUTS) else "outputs"


def shard(whole: LowRank, split: Split, index: int, count: int) -> LowRank:
    """Part `index` of `count` equal ones.

    Key and value heads that several devices share are cut by heads: give the number of the part,
    not of the device.

    Raises:
        InvalidRequest: there are no `count` equal parts.
    """
    dim, size = (1, whole.a.shape[1]) if split == "inputs" else (0, whole.b.shape[0])
    if not 0 <= index < count or size % count:
        raise InvalidRequest(
            f"an adapter's {size} {split} cannot be cut into {count} equal parts",
            value=f"part {index} of {count}",
            hint="Use as many devices as divide the model's heads and widths.",
        )
    step = size // count
    if split == "inputs":
        return LowRank(whole.a.narrow(dim, index * step, step), whole.b, whole.scale)
    return LowRank(whole.a, whole.b.narrow(dim, index * step, step), whole.scale)
