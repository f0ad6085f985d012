"""Laws of the sampler, against slow references in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.sampling.sampler import Sampler, SampleResult
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch

TABLE = torch.zeros((4, 8), dtype=torch.int32)


def draw(
    logits: torch.Tensor,
    rows: list[RowSampling],
    positions: list[int],
    table: torch.Tensor = TABLE,
    **mask: Any,
) -> SampleResult:
    batch = SamplingBatch.build(rows)
    sampler = Sampler(logits.shape[1])
    return sampler.sample(
        logits.clone(),
        batch,
        np.array(positions, dtype=np.int64),
        np.arange(len(rows), dtype=np.int32) % len(table),
        table,
        **mask,
    )


def reference(logits: np.ndarray[Any, Any], params: SamplingParams) -> np.ndarray[Any, Any]:
    """Probabilities after temperature, top_k, top_p and min_p; lowest ids kept among equals."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.lexsort((np.arange(len(logits)), -scaled))
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1.0:
        share = np.cumsum(weights[order]) / weights[order].sum()
        order = order[: int(np.searchsorted(share, params.top_p - 1e-12)) + 1]
    order = order[weights[order] >= params.min_p * weights.max()]
    kept = np.zeros_like(weights)
    kept[order] = weights[order]
    return kept / kept.sum()


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.5, top_k=7),
    SamplingParams(top_p=0.8),
    SamplingParams(temperature=0.9, top_k=40, top_p=0.7),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=20, top_p=0.9, min_p=0.2),
]


@pytest.mark.parametrize("params", PARAMS)
def test_draws_follow_the_distribution_and_stay_in_its_support(params: SamplingParams) -> None:
    vocab, draws = 100, 20_000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 2
    expected = reference(logits.numpy(), params)
    rows = [RowSampling(params, 1234, 0)] * 500
    counts = np.zeros(vocab)
    for start in range(0, draws, 500):
        result = draw(logits.expand(500, vocab), rows, list(range(start, start + 500)))
        counts += np.bincount(result.ids.numpy(), minlength=vocab)
    assert not counts[expected == 0].any()
    used = expected * draws >= 5
    if used.sum() > 1:
        deviation = (counts[used] - expected[used] * draws) ** 2 / (expected[used] * draws)
        degrees = int(used.sum()) - 1
        assert (deviation.sum() - degrees) / np.sqrt(2 * degrees) < 4.5


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    vocab=st.sampled_from([1, 3, 33, 64, 300, 5000]),
    scale=st.sampled_from([0.0, 0.2, 2.0, 30.0]),
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([-1, 2, 5, 300, 100_000]),
    top_p=st.sampled_from([0.001, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_truncation_keeps_exactly_the_reference_support(
    vocab: int, scale: float, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The extreme ends of the random number hit the first and the last token kept."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale
    expected = reference(logits.numpy(), params)
    many = 64
    rows = [RowSampling(params, seed, 0)] * many
    result = draw(logits.expand(many, vocab), rows, list(range(many)))
    assert not result.bad_rows
    drawn = result.ids.numpy()
    near_cut = (expected == 0) & (
        np.abs(logits.numpy() - logits.numpy()[expected > 0].min()) < 1e-4
    )
    assert (expected[drawn] > 0).sum() + near_cut[drawn].sum() == many


def test_ties_at_a_cut_keep_the_lowest_ids() -> None:
    logits = torch.zeros((2000, 5000))
    logits[:, 4000:4010] = 1.0
    rows = [RowSampling(SamplingParams(top_k=12), 5, 0)] * 2000
    drawn = set(draw(logits, rows, list(range(2000))).ids.tolist())
    assert drawn == {*range(4000, 4010), 0, 1}
    uniform = torch.zeros((2000, 8))
    rows = [RowSampling(SamplingParams(top_p=0.5), 5, 0)] * 2000
    assert set(draw(uniform, rows, list(range(2000))).ids.tolist()) == {0, 1, 2, 3}


MIXED = [
    *PARAMS,
    SamplingParams(temperature=0.0),
    SamplingParams(top_k=3000),
    SamplingParams(top_p=0.99),
    SamplingParams(top_p=0.3, repetition_penalty=1.3),
    SamplingParams(temperature=0.3, logit_bias={3: 2.0}, logprobs=2),
    SamplingParams(top_k=1),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [97, 49_152, 50_257])
def test_same_seed_same_token_whatever_the_batch(vocab: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(vocab)
        logits = torch.randn((len(MIXED) * 3, vocab), generator=generator) * 2
        table = torch.randint(0, vocab, (64, 40), dtype=torch.int32, generator=generator)
        rows = [RowSampling(params, 77 + i, 2) for i, params in enumerate(MIXED * 3)]
        positions = [10 + i for i in range(len(rows))]
        alone = [
            int(draw(logits[i : i + 1], [rows[i]], [positions[i]], table[i : i + 1]).ids[0])
            for i in range(len(rows))
        ]
        rng = np.random.default_rng(0)
        for _ in range(4):
            order = rng.permutation(len(rows))[: rng.integers(2, len(rows) + 1)]
            together = draw(
                logits[torch.from_numpy(order)],
                [rows[i] for i in order],
                [positions[i] for i in order],
                table[torch.from_numpy(order)],
            )
            assert together.ids.tolist() == [alone[i] for i in order]
    finally:
        torch.set_num_threads(before)


def test_a_batch_object_is_reusable_across_steps() -> None:
    logits = torch.randn((3, 500), generator=torch.Generator().manual_seed(1))
    rows = [RowSampling(PARAMS[i], i, 0) for i in range(3)]
    batch, sampler = SamplingBatch.build(rows), Sampler(500)
    index = np.arange(3, dtype=np.int32)
    for step in range(5):
        positions = np.full(3, step, dtype=np.int64)
        first = sampler.sample(logits.clone(), batch, positions, index, TABLE)
        again = sampler.sample(logits.clone(), batch, positions, index, TABLE)
        assert first.ids.tolist() == again.ids.tolist()
        assert first.ids.tolist() == draw(logits, rows, [step] * 3).ids.tolist()


def test_seeds_and_positions_give_unrelated_numbers() -> None:
    from branchline.runtime.sampling.numerics import mix_seeds, uniforms

    seeds = mix_seeds([*range(-500, 500), 2**63])
    grid = np.stack([uniforms(seeds, np.full(1001, p, dtype=np.int64)) for p in range(200)])
    assert grid.min() >= 0 and grid.max() < 1
    assert len(np.unique(grid)) == grid.size
    assert abs(grid.mean() - 0.5) < 0.003
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.01


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros((2, 1000))
    logits[0, [400, 20, 999]] = 3.0
    rows = [RowSampling(SamplingParams(temperature=0.0), 0, 0)] * 2
    assert draw(logits, rows, [0, 0]).ids.tolist() == [20, 0]


def test_a_bad_row_is_named_and_harms_no_other() -> None:
    vocab = 300
    logits = torch.randn((6, vocab), generator=torch.Generator().manual_seed(9))
    rows = [RowSampling(params, 4, 0) for params in (*PARAMS[:4], *MIXED[7:9])]
    want = draw(logits, rows, [3] * 6).ids.tolist()
    for sick in range(6):
        for value in (float("nan"), float("inf"), -float("inf")):
            broken = logits.clone()
            broken[sick] = value
            if value != value:
                broken[sick] = logits[sick]
                broken[sick, 17] = value
            result = draw(broken, rows, [3] * 6)
            assert result.bad_rows == (sick,)
            assert result.ids[sick] == 0
            kept = [i for i in range(6) if i != sick]
            assert [result.ids.tolist()[i] for i in kept] == [want[i] for i in kept]


def test_mask_bias_and_suppression_act_on_their_rows_only() -> None:
    vocab = 70
    logits = torch.randn((4, vocab), generator=torch.Generator().manual_seed(2))
    greedy = SamplingParams(temperature=0.0)
    best = logits.argmax(-1).tolist()
    bitmask = np.full((4, 3), -1, dtype=np.int32)
    bitmask[1] = 0, 0, 1 << 1  # token 65 alone
    rows = [
        RowSampling(SamplingParams(temperature=0.0, logit_bias={11: 50.0}), 0, 0),
        RowSampling(greedy, 0, 0),
        RowSampling(SamplingParams(temperature=0.0, min_tokens=3), 0, 5, (best[2],)),
        RowSampling(greedy, 0, 0),
    ]
    result = draw(logits, rows, [1, 1, 7, 1], bitmask=bitmask)
    second = int(logits[2].topk(2).indices[1])
    assert result.ids.tolist() == [11, 65, second, best[3]]
    late = draw(logits, rows, [1, 1, 8, 1], bitmask=bitmask)
    assert late.ids.tolist() == [11, 65, best[2], best[3]]
    bitmask[[0, 2, 3]] = 0
    nothing = draw(logits, rows, [1] * 4, bitmask=bitmask)
    assert nothing.bad_rows == (0, 2, 3)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), *PARAMS])
def test_masked_draws_equal_draws_from_masked_logits(params: SamplingParams) -> None:
    vocab = 1000
    rng = np.random.default_rng(0)
    bits = rng.random((10, 1024)) < 0.4
    bitmask = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    logits = torch.randn((10, vocab), generator=torch.Generator().manual_seed(4))
    rows = [RowSampling(params, i, 0) for i in range(10)]
    masked = logits.masked_fill(torch.from_numpy(~bits[:, :vocab]), -torch.inf)
    got = draw(logits, rows, [2] * 10, bitmask=bitmask)
    assert got.ids.tolist() == draw(masked, rows, [2] * 10).ids.tolist()


def test_build_takes_any_seed_and_rejects_unknown_tokens() -> None:
    from branchline.runtime.core.bounds import check_token_ids
    from branchline.runtime.errors import InvalidRequest

    batch = SamplingBatch.build([RowSampling(SamplingParams(), seed, 0) for seed in (-1, 2**70)])
    assert batch.size == 2 and not batch.all_greedy
    check_token_ids(SamplingParams(logit_bias={5: -100.0}, stop_token_ids=(9,)), 10)
    for bad in (
        SamplingParams(logit_bias={10: 1.0}),
        SamplingParams(logit_bias={-1: 1.0}),
        SamplingParams(stop_token_ids=(10,)),
        SamplingParams(logit_bias={1: float("nan")}),
        SamplingParams(logit_bias={1: 1e9}),
    ):
        with pytest.raises(InvalidRequest):
            check_token_ids(bad, 10)


def test_the_likeliest_ids_alone_are_those_of_the_general_way() -> None:
    """Without a mask a shorter way is taken; a mask that forbids nothing chooses the long one."""
    logits = torch.randn(7, 100, generator=torch.Generator().manual_seed(5))
    logits[1, [20, 70]] = 9.0
    logits[2, :] = -torch.inf
    logits[3, 4] = torch.inf
    logits[4, 50] = torch.nan
    rows, places = [RowSampling(SamplingParams(temperature=0.0), 0, 0)] * 7, list(range(7))
    mask = np.full((7, 4), -1, dtype=np.int32)
    mask[0, 0] = -2  # forbids id 0 in one row, so that the mask is looked at
    logits[0, 0] = -9.0
    for some in (slice(0, 7), slice(0, 2), slice(5, 7)):
        short = draw(logits[some], rows[some], places[some])
        general = draw(logits[some], rows[some], places[some], bitmask=mask[some])
        assert torch.equal(short.ids, general.ids)
        assert short.bad_rows == general.bad_rows
    assert draw(logits, rows, places).ids[1] == 20
    assert draw(logits, rows, places).bad_rows == (2, 3, 4)
