"""The library builds once, atomically, and its absence falls back with a clear word."""

from pathlib import Path

import pytest
import torch

from branchline.kernels import dispatch
from branchline.kernels.cpu import build
from branchline.kernels.cpu.binding import NativeLibrary, Runner, load_library
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.errors import KernelBuildError, KernelInputError
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.testing import random_quantized, random_step
from branchline.kernels.weights import Q4_1Weight, Q8_0Weight


def test_second_build_finds_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.build_library()
    assert path.exists()

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", refuse)
    assert build.build_library() == path


def test_no_compiler_falls_back_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(march: str = "native") -> NativeLibrary:
        raise KernelBuildError("no C++ compiler found: install g++")

    monkeypatch.setattr(dispatch, "load_library", broken)
    with pytest.warns(RuntimeWarning, match=r"install g\+\+"):
        assert isinstance(dispatch.make_ops("auto"), ReferenceOps)
    with pytest.raises(KernelBuildError, match="install"):
        dispatch.make_ops("native")
    assert isinstance(dispatch.make_ops("reference"), ReferenceOps)
    with pytest.raises(KernelInputError, match="'gpu'"):
        dispatch.make_ops("gpu")  # type: ignore[arg-type]


def test_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelBuildError, match=r"apt install g\+\+"):
        build.find_compiler()


def test_compile_error_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KernelBuildError, match="no-such-machine"):
        build.build_library("no-such-machine", tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(KernelBuildError, match="XDG_CACHE_HOME"):
        build.build_library(folder=blocker / "kernels")


@pytest.mark.slow
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set_agrees(march: str) -> None:
    """Quantized linears have the same bits with fused multiply-adds; the rest is close."""
    torch.manual_seed(0)
    best, other = (NativeOps(Runner(load_library(m), 2)) for m in ("native", march))
    x = torch.randn(21, 576)
    for kind in (Q4_1Weight, Q8_0Weight):
        weight = random_quantized(kind, 70, 576, 0)
        a, b = best.linear(x, weight), other.linear(x, weight)
        if march == "x86-64":
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)
    step = random_step([(200, 20), (150, 1)])
    q = torch.randn(21, 6, 64)
    k, v = torch.randn(2, step.num_slots, 2, 64).unbind(0)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (
            ops.paged_attention(q, k.to(dtype), v.to(dtype), step.meta, 0.125)
            for ops in (best, other)
        )
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
