"""FlashInfer's kernels agree with attention written out token by token, eager and recorded."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels.testing import Step, meta_on, random_step
from branchline.kernels.triton import TritonOps
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan
from branchline.runtime.attention.flashinfer import FlashInferAttention
from branchline.runtime.attention.registry import make_attention
from tests.attention.test_backends import CASES, brute_force

CUDA = torch.device("cuda")


def test_without_a_way_to_its_kernels_it_says_so_and_auto_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is imported or compiled to find out."""
    needs = AttentionNeeds(8, 2, 128, torch.bfloat16, CUDA)
    backend = FlashInferAttention(needs)
    there = {"flashinfer"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert "no nvcc" in backend.supports(needs).reason
    assert make_attention("auto", needs).name == "triton"
    there.add("flashinfer_jit_cache")
    assert make_attention("auto", needs).name == "flashinfer"
    there.clear()
    assert "not installed" in backend.supports(needs).reason
    odd = AttentionNeeds(8, 2, 80, torch.bfloat16, CUDA)
    there.update(("flashinfer", "flashinfer_jit_cache"))
    assert make_attention("auto", odd).name == "triton"
    fixed = AttentionNeeds(8, 2, 128, torch.bfloat16, CUDA, deterministic=True)
    assert make_attention("auto", fixed).name == "triton"


class Subject:
    """FlashInfer for some heads, over a random bfloat16 pool."""

    def __init__(self, heads: tuple[int, int, int], slots: int) -> None:
        torch.manual_seed(1)
        hq, hkv, self.dim = heads
        needs = AttentionNeeds(hq, hkv, self.dim, torch.bfloat16, torch.device("cuda"))
        self.backend = make_attention("flashinfer", needs)
        self.ops = TritonOps("cuda")
        self.pools = torch.randn(2, slots, hkv, self.dim, device="cuda").bfloat16()
        self.heads = hq

    def queries(self, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, self.heads, self.dim, device="cuda").bfloat16()

    def attend(self, q: torch.Tensor, plan: AttentionPlan, scale: float) -> torch.Tensor:
        self.backend.begin(plan)
        return self.backend.forward(self.ops, q, *self.pools, plan, scale)

    def error(self, got: torch.Tensor, q: torch.Tensor, step: Step, scale: float) -> float:
        k, v = self.pools.float().cpu()
        want = brute_force(q.float().cpu(), k, v, step.meta, scale)
        return float((got.double().cpu() - want).norm() / want.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(8, 2, 128), (4, 2, 128)], ids=str)
def test_forward_equals_brute_force(heads: tuple[int, int, int], case: str) -> None:
    lens, trees = CASES[case]
    step = random_step(lens, seed=3, trees=trees)
    subject = Subject(heads, step.num_slots)
    q = subject.queries(step.tokens)
    for scale in (heads[2] ** -0.5, 0.2):
        got = subject.attend(q, subject.backend.plan(meta_on(step.meta, CUDA)), scale)
        assert subject.error(got, q, step, scale) < 8e-3


@pytest.mark.gpu
def test_many_plans_in_flight_keep_their_own_lengths() -> None:
    """Steps are planned faster than they run; none sees the lengths of a later one."""
    steps = [random_step([(40 + 9 * i, 1), (300 - 20 * i, 5)], seed=i) for i in range(8)]
    subject = Subject((8, 2, 128), max(step.num_slots for step in steps))
    q = subject.queries(6)
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy / 64.0
    got = [subject.attend(q, subject.backend.plan(meta_on(step.meta, CUDA)), 0.1) for step in steps]
    for out, step in zip(got, steps, strict=True):
        assert subject.error(out, q, step, 0.1) < 8e-3


@pytest.mark.gpu
@pytest.mark.parametrize("lens", [[(40, 1), (33, 1), (90, 20)], [(50, 30), (40, 1), (9, 9)]])
def test_rows_of_one_token_mix_with_prompts(lens: list[tuple[int, int]]) -> None:
    """Before the prompts, as the scheduler puts them, and behind one."""
    step = random_step(lens, seed=1)
    subject = Subject((8, 2, 128), step.num_slots)
    q = subject.queries(step.tokens)
    got = subject.attend(q, subject.backend.plan(meta_on(step.meta, CUDA)), 128**-0.5)
    assert subject.error(got, q, step, 128**-0.5) < 8e-3
