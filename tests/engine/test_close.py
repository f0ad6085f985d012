"""A closed engine gives its cache back, whoever still holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from branchline.runtime.errors import BranchlineError
from tests.support.tiny_engine import tiny_engine


def test_keys_and_values_are_freed_while_the_closed_engine_is_held(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path / "tiny", speculative="ngram")
    engine.generate([[5, 6, 7]], max_tokens=3)
    pools = engine._parts.scheduler_parts.pools
    assert pools and all(pool.buffer.untyped_storage().nbytes() for pool in pools)
    engine.close()
    engine.close()
    assert [pool.buffer.untyped_storage().nbytes() for pool in pools] == [0] * len(pools)
    assert engine.info()["cache"]["capacity_tokens"] > 0, "what it counted can still be read"
    with pytest.raises(BranchlineError):
        engine.generate([[5, 6, 7]], max_tokens=3)


@pytest.mark.gpu
def test_another_engine_has_the_whole_device_again(tmp_path: Path) -> None:
    """With the memory that engines take by themselves, which is nearly all there is."""
    held = []
    tokens = []
    for name in ("one", "two"):
        engine = tiny_engine(tmp_path / name, device="cuda", kv_tokens=None)
        held.append(engine)
        tokens.append(engine.info()["kv_tokens"])
        engine.generate([[5, 6, 7]], max_tokens=3)
        engine.close()
    assert tokens[1] > 0.95 * tokens[0]
    assert torch.cuda.memory_allocated() < 0.1 * torch.cuda.mem_get_info()[1]
