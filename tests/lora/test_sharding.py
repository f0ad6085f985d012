"""The parts of a cut adapter, put together as the layer's parts are, are the whole one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.lora.layout import LowRank
from branchline.runtime.lora.sharding import shard, split_of


@settings(deadline=None)
@given(
    module=st.sampled_from(
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.3.self_attn.o_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.mlp.down_proj",
            "lm_head",
        ]
    ),
    count=st.sampled_from([1, 2, 4]),
    rank=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_a_cut_layer_with_cut_adapters_is_the_whole_merged_one(
    module: str, count: int, rank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 8, 12
    weight, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, columns), (3, columns))
    )
    low = LowRank(
        torch.randn(rank, columns, generator=generator, dtype=torch.float64),
        torch.randn(rows, rank, generator=generator, dtype=torch.float64),
        1.5,
    )
    split = split_of(module)
    pieces = []
    for index in range(count):
        part = shard(low, split, index, count)
        if split == "outputs":
            own_weight, own_x = weight.chunk(count, 0)[index], x
        else:
            own_weight, own_x = weight.chunk(count, 1)[index], x.chunk(count, 1)[index]
        pieces.append(own_x @ own_weight.T + part.scale * (own_x @ part.a.T) @ part.b.T)
    got = torch.cat(pieces, 1) if split == "outputs" else torch.stack(pieces).sum(0)
    torch.testing.assert_close(got, x @ (weight + low.scale * low.b @ low.a).T)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_cut_vocabulary_looks_every_token_up_once(count: int) -> None:
    vocabulary, hidden, rank = 10, 4, 3
    low = LowRank(torch.randn(rank, vocabulary), torch.randn(hidden, rank), 0.5)
    assert split_of("model.embed_tokens") == "inputs"
    step = vocabulary // count
    for token in range(vocabulary):
        part = shard(low, "inputs", token // step, count)
        got = part.scale * part.b @ part.a[:, token % step]
        torch.testing.assert_close(got, low.scale * low.b @ low.a[:, token])


@pytest.mark.parametrize(("split", "index", "count"), [("outputs", 0, 3), ("inputs", 2, 2)])
def test_what_cannot_be_cut_is_said(split: str, index: int, count: int) -> None:
    low = LowRank(torch.zeros(1, 4), torch.zeros(4, 1), 1.0)
    with pytest.raises(InvalidRequest, match=f"4 {split} cannot be cut into {count}"):
        shard(low, split, index, count)  # type: ignore[arg-type]
