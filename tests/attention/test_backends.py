"""Every attention backend agrees with attention written out token by token."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.kernels.reference.ops import visible_tokens
from branchline.kernels.testing import meta_on, random_step
from branchline.kernels.triton import TritonOps
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan
from branchline.runtime.attention.registry import BACKENDS, make_attention
from branchline.runtime.attention.torch_native import TorchAttention
from branchline.runtime.errors import InvalidRequest

CASES: dict[str, tuple[list[tuple[int, int]], list[int] | None]] = {
    "one token": ([(1, 1)], None),
    "decode": ([(5, 1), (70, 1), (1, 1), (33, 1)], None),
    "prefill": ([(40, 40)], None),
    "chunk after a chunk": ([(40, 13)], None),
    "mixed": ([(64, 1), (65, 33), (7, 7), (129, 2)], None),
    "row without tokens": ([(9, 3), (4, 0), (6, 1)], None),
    "tree": ([(20, 6)], [6]),
    "tree behind a chunk": ([(30, 20)], [7]),
    "trees and plain rows": ([(30, 9), (5, 1), (80, 70), (12, 12)], [4, 0, 66, 12]),
}


def brute_force(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, meta: AttentionMeta, scale: float
) -> torch.Tensor:
    """One token, one head, one weight at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for row in range(len(meta.rows)):
        mask = visible_tokens(meta, row)
        slots = meta.slot_table[int(meta.rows[row])].long()
        for x in range(int(meta.extend_lens[row])):
            token = int(meta.extend_start[row]) + x
            seen = slots[: mask.shape[1]][mask[x]]
            for head in range(q.shape[1]):
                keys, values = k[seen, head // group].double(), v[seen, head // group].double()
                weights = torch.softmax(keys @ q[token, head].double() * scale, dim=0)
                out[token, head] = weights @ values
    return out.reshape(q.shape[0], -1)


class Subject:
    """A backend with ops that it runs with, on their device.

    Args:
        backend: its name.
        ops: "native", "reference" or "triton".
        device: of the pool.
    """

    def __init__(self, backend: str, ops: str, device: torch.device) -> None:
        self.name = backend
        self.device = device
        self.ops: Ops
        if ops == "triton":
            self.ops = TritonOps(device, torch.float32)
        else:
            self.ops = make_ops("native" if ops == "native" else "reference", threads=2)
        self.backend = BACKENDS[backend](needs())

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        meta: AttentionMeta,
        scale: float,
        plan: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """`forward` of operands in host memory."""
        plan = self.backend.plan(meta_on(meta, self.device)) if plan is None else plan
        operands = (x.to(self.device) for x in (q, k, v))
        return self.backend.forward(self.ops, *operands, plan, scale).cpu()


SUBJECTS = [
    ("cpu", "native"),
    ("cpu", "reference"),
    ("torch_native", "native"),
    ("torch_native", "reference"),
    ("triton", "triton"),
]


@pytest.fixture(params=SUBJECTS, ids="-".join)
def subject(request: pytest.FixtureRequest, kernel_device: torch.device) -> Subject:
    name, ops = request.param
    return Subject(name, ops, kernel_device if name == "triton" else torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 2), (8, 1)], ids=str)
def test_forward_equals_brute_force(subject: Subject, heads: tuple[int, int], case: str) -> None:
    lens, trees = CASES[case]
    step = random_step(lens, seed=3, trees=trees)
    torch.manual_seed(1)
    q = torch.randn(step.tokens, heads[0], 32)
    k, v = (torch.randn(step.num_slots, heads[1], 32) for _ in range(2))
    out = subject.attend(q, k, v, step.meta, 0.2)
    assert out.shape == (step.tokens, heads[0] * 32)
    expected = brute_force(q, k, v, step.meta, 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)


def test_a_bfloat16_pool_is_accumulated_in_float32(subject: Subject) -> None:
    step = random_step([(300, 3), (5, 1)], seed=2)
    torch.manual_seed(1)
    q = torch.randn(step.tokens, 6, 64)
    k, v = (torch.randn(step.num_slots, 2, 64).bfloat16() for _ in range(2))
    out = subject.attend(q, k, v, step.meta, 0.125)
    expected = brute_force(q, k.float(), v.float(), step.meta, 0.125)
    # kernels round queries and weights to the pool's bfloat16; sums are float32 in all
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=1e-2)
    if subject.name == "torch_native":
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)


def test_replayed_plan_equals_a_fresh_one(subject: Subject) -> None:
    first, second = random_step([(9, 4), (6, 1)], seed=0), random_step([(12, 1), (8, 8)], seed=5)
    plan = subject.backend.init_graph(meta_on(second.meta, subject.device))
    for step in (first, second):
        torch.manual_seed(4)
        q = torch.randn(step.tokens, 4, 16)
        k, v = (torch.randn(step.num_slots, 2, 16) for _ in range(2))
        fresh = subject.attend(q, k, v, step.meta, 0.25)
        if step is second or subject.name == "torch_native":
            subject.backend.plan_replay(plan, meta_on(step.meta, subject.device))
            assert torch.equal(subject.attend(q, k, v, step.meta, 0.25, plan), fresh)


def test_torch_backend_splits_long_rows_without_changing_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = random_step([(90, 60), (50, 40)], seed=1, trees=[0, 9])
    torch.manual_seed(1)
    q = torch.randn(step.tokens, 4, 16)
    k, v = (torch.randn(step.num_slots, 2, 16) for _ in range(2))
    backend, ops = TorchAttention(), make_ops("reference")
    whole = backend.forward(ops, q, k, v, backend.plan(step.meta), 0.25)
    monkeypatch.setattr("branchline.runtime.attention.torch_native.SCORE_BYTES", 7 * 4 * 4 * 90)
    pieces = backend.forward(ops, q, k, v, backend.plan(step.meta), 0.25)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def needs(**changes: object) -> AttentionNeeds:
    values: dict[str, object] = {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "kv_dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return AttentionNeeds(**(values | changes))  # type: ignore[arg-type]  # a test's own values


def test_auto_takes_the_first_backend_that_can() -> None:
    assert make_attention("auto", needs()).name == "cpu"
    assert make_attention("auto", needs(device=torch.device("meta"))).name == "torch_native"
    assert make_attention("auto", needs(kv_dtype=torch.float64)).name == "torch_native"
    assert make_attention("torch_native", needs()).name == "torch_native"


def test_a_backend_that_cannot_says_why() -> None:
    with pytest.raises(InvalidRequest, match="runs on the CPU, the pool is on meta"):
        make_attention("cpu", needs(device=torch.device("meta")))
    with pytest.raises(InvalidRequest, match="run on CUDA, the pool is on cpu"):
        make_attention("triton", needs())
    with pytest.raises(InvalidRequest, match="run on CUDA, the pool is on cpu"):
        make_attention("flashinfer", needs())
    with pytest.raises(InvalidRequest, match="cannot be recorded"):
        make_attention("torch_native", needs(graph=True))
    with pytest.raises(
        InvalidRequest, match=r"'?flashy'?.* Use auto, cpu, flashinfer, triton, torch_native"
    ):
        make_attention("flashy", needs())


def test_auto_says_what_each_backend_lacks_where_none_can() -> None:
    with pytest.raises(InvalidRequest, match=r"cpu: it reads .*; torch_native: .* be recorded"):
        make_attention("auto", needs(kv_dtype=torch.float64, graph=True))
