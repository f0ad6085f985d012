"""A row's logits do not depend on how its tokens came: chunks, mates, graphs, trees, pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import RowInit
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.executor.build import load_model
from branchline.runtime.executor.warmup import warm_up
from branchline.runtime.loading.gguf import GgufCheckpoint
from branchline.runtime.models.base import Model
from tests.loading.tiny_files import SPEC, random_weights, write_gguf
from tests.support.model_driver import Driver, Part, load_tiny, tiny_llama

ROWS = 3
Same = Callable[[torch.Tensor, torch.Tensor], None]


@pytest.fixture(scope="module")
def native() -> Ops:
    return make_ops("native", threads=2)


@pytest.fixture(scope="module")
def models(native: Ops, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Dense float32, dense bfloat16 and 4-bit weights."""
    folder = tiny_llama(tmp_path_factory.mktemp("hf"))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    weights = {name: w * np.float32(0.2) for name, w in random_weights(SPEC).items()}
    write_gguf(path, SPEC, weights, gguf.GGMLQuantizationType.Q4_1)
    return {
        "float32": load_tiny(folder, native),
        "bfloat16": load_tiny(folder, native, "bfloat16"),
        "Q4_1": load_model(GgufCheckpoint(path), native, max_context=96),
    }


def row_ids(model: Model, row: int, count: int) -> list[int]:
    rng = np.random.default_rng(row)
    return [int(x) for x in rng.integers(0, model.spec.vocab_size, count)]


def whole_row(model: Model, ops: Ops, row: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits of every token of the row, computed alone and at once."""
    driver = Driver(model, ops, kv_dtype=dtype, graph=False)
    return driver.run(Part(row, row_ids(model, row, count), every=True))


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["float32", "bfloat16", "Q4_1"]))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_any_split_into_steps_gives_the_same_bits(
    models: dict[str, Model], native: Ops, seed: int, name: str
) -> None:
    model, rng = models[name], np.random.default_rng(seed)
    dtype = torch.float32 if rng.random() < 0.5 else torch.bfloat16
    lengths = [int(x) for x in rng.integers(1, 70, ROWS)]
    driver = Driver(
        model,
        native,
        kv_dtype=dtype,
        graph=bool(rng.integers(2)),
        page_size=int(rng.choice([1, 4])),
        max_step_tokens=64,  # larger steps fall back to eager
        seed=seed,
    )
    logits: list[list[torch.Tensor]] = [[] for _ in range(ROWS)]
    while any(driver.lengths[row] < lengths[row] for row in range(ROWS)):
        parts = []
        for row in map(int, rng.permutation(ROWS)):
            done = driver.lengths[row]
            count = min(int(rng.choice([0, 1, 1, 2, 7, 33])), lengths[row] - done)
            if count:
                ids = row_ids(model, row, lengths[row])[done : done + count]
                parts.append(Part(row, ids, every=True))
        if not parts:
            continue
        got = driver.run(*parts)
        for part in parts:
            logits[part.row].append(got[: len(part.ids)])
            got = got[len(part.ids) :]
    for row in range(ROWS):
        expected = whole_row(model, native, row, lengths[row], dtype)
        assert torch.equal(torch.cat(logits[row]), expected)


def test_reference_ops_agree_within_rounding(models: dict[str, Model], tmp_path: Path) -> None:
    ops = make_ops("reference")
    model = load_tiny(tiny_llama(tmp_path), ops)
    whole = whole_row(model, ops, 0, 40, torch.float32)
    ids = row_ids(model, 0, 40)
    for attention in ("cpu", "torch_native"):
        driver = Driver(model, ops, attention=attention)
        parts = [ids[:1], ids[1:18], ids[18:19], ids[19:40]]
        got = torch.cat([driver.run(Part(0, part, every=True)) for part in parts])
        torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(got.argmax(-1), whole.argmax(-1))


def test_a_graph_is_there_only_where_it_can_be(models: dict[str, Model], native: Ops) -> None:
    model = models["float32"]
    assert Driver(model, native).runner.graphs is not None
    assert Driver(model, native, graph=False).runner.graphs is None
    assert Driver(model, native, attention="torch_native").runner.graphs is None


@pytest.mark.parametrize("rows", [3, 9])
def test_the_head_may_be_part_of_the_graph(
    models: dict[str, Model], native: Ops, rows: int
) -> None:
    """Nine rows of logits are more than the graph of eight rows takes."""
    model = models["Q4_1"]
    ids = row_ids(model, 0, rows)
    plan = Driver(model, native).plan([Part(0, ids, every=True)])
    with torch.inference_mode():
        got = Driver(model, native).runner.run_to_logits(plan)
    assert torch.equal(got, Driver(model, native, graph=False).run(Part(0, ids, every=True)))


def test_only_wanted_logits_are_computed(models: dict[str, Model], native: Ops) -> None:
    model = models["Q4_1"]
    ids = row_ids(model, 0, 30)
    every = Driver(model, native).run(Part(0, ids, every=True))
    last = Driver(model, native).run(Part(0, ids))
    assert torch.equal(last, every[-1:])


@pytest.mark.parametrize("graph", [True, False])
def test_a_chunk_without_logits_still_fills_the_cache(
    models: dict[str, Model], native: Ops, graph: bool
) -> None:
    model = models["float32"]
    ids = row_ids(model, 0, 30)
    driver = Driver(model, native, graph=graph)
    plan = driver.plan([Part(0, ids[:20])])
    plan.logit_idx = np.empty(0, dtype=np.int32)
    with torch.inference_mode():
        assert driver.runner.run(plan).shape == (0, model.spec.hidden)
    got = driver.run(Part(0, ids[20:], every=True))
    expected = whole_row(model, native, 0, 30, torch.float32)[20:]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("graph", [True, False])
def test_unknown_ids_are_read_from_the_token_table(
    models: dict[str, Model], native: Ops, graph: bool
) -> None:
    model = models["float32"]
    ids = row_ids(model, 2, 12)
    driver = Driver(model, native, graph=graph)
    plan = driver.plan([Part(1, row_ids(model, 1, 3)), Part(2, [*ids[:9], -1, -1, ids[11]])])
    plan.inits.append(RowInit(row=2, start=0, ids=np.array(ids, dtype=np.int32)))
    with torch.inference_mode():
        got = driver.runner.logits(driver.runner.run(plan).clone())
    expected = whole_row(model, native, 2, 12, torch.float32)
    assert torch.equal(got[1:], expected[-1:])


def test_copied_slots_stand_for_computed_ones(models: dict[str, Model], native: Ops) -> None:
    model = models["float32"]
    ids = row_ids(model, 0, 20)
    driver = Driver(model, native)
    driver.run(Part(0, ids[:12]))
    driver.lengths[3] = 12
    plan = driver.plan([Part(3, ids[12:])])
    plan.copies = (driver.slots[0, :12].copy(), driver.slots[3, :12].copy())
    with torch.inference_mode():
        got = driver.runner.logits(driver.runner.run(plan).clone())
    assert torch.equal(got, whole_row(model, native, 0, 20, torch.float32)[-1:])


def test_an_empty_step_only_writes_tables(models: dict[str, Model], native: Ops) -> None:
    driver = Driver(models["float32"], native)
    plan = driver.plan([Part(0, [5])])
    empty = dataclasses.replace(
        plan,
        rows=plan.rows[:0],
        seq_lens=plan.seq_lens[:0],
        extend_lens=plan.extend_lens[:0],
        input_ids=plan.input_ids[:0],
        logit_idx=plan.logit_idx[:0],
        inits=[RowInit(4, 2, np.array([9, 8], dtype=np.int32))],
    )
    assert driver.runner.run(empty).shape == (0, driver.runner.model.spec.hidden)
    assert driver.runner.token_table[4, :5].tolist() == [0, 0, 9, 8, 0]


def random_tree(rng: np.random.Generator, vocab: int, count: int) -> DraftTree:
    parents = [int(rng.integers(-1, i)) for i in range(count)]
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return DraftTree(
        rng.integers(0, vocab, count).astype(np.int32),
        np.array(parents, dtype=np.int32),
        np.array(depths, dtype=np.int32),
    )


def branch(tree: DraftTree, node: int) -> list[int]:
    """Tokens from the root to the node."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(tree.token_ids[node]))
        node = int(tree.parents[node])
    return path


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["float32", "Q4_1"]))
@settings(deadline=None, derandomize=True, max_examples=12)
def test_tree_nodes_get_the_logits_of_their_branch_alone(
    models: dict[str, Model], native: Ops, seed: int, name: str
) -> None:
    model, rng = models[name], np.random.default_rng(seed)
    tree = random_tree(rng, model.spec.vocab_size, int(rng.integers(1, 70)))
    prefix = int(rng.integers(1, 20))
    cached = int(rng.integers(0, prefix))
    ids = row_ids(model, 0, prefix)
    driver = Driver(model, native, graph=bool(rng.integers(2)))
    if cached:
        driver.run(Part(0, ids[:cached]))
    mate = Part(1, row_ids(model, 1, 5), every=True)
    got = driver.run(Part(0, ids[cached:], tree=tree), mate)
    nodes = got[prefix - cached :][: len(tree)]
    for node in range(0, len(tree), max(1, len(tree) // 9)):
        path = ids + branch(tree, node)
        if len(path) > model.max_context:
            continue
        alone = Driver(model, native, graph=False).run(Part(0, path))
        # keys are summed in another order, which may tip the 8-bit rounding of an activation
        limit = 1e-4 if name == "float32" else 0.05
        torch.testing.assert_close(nodes[node], alone[0], rtol=limit, atol=limit)
    mates = whole_row(model, native, 1, 5, torch.float32)
    assert torch.equal(got[prefix - cached + len(tree) :], mates)


def test_warm_up_leaves_no_trace(models: dict[str, Model], native: Ops) -> None:
    model = models["float32"]
    driver = Driver(model, native)
    before = driver.slots.copy()
    driver.slots[:] = 0
    warm_up(driver.runner)
    driver.slots[:] = before
    assert not driver.runner.token_table.any()
    got = driver.run(Part(0, row_ids(model, 0, 8), every=True))
    assert torch.equal(got, whole_row(model, native, 0, 8, torch.float32))
