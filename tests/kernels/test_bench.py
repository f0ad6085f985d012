"""The benchmark's synthetic model runs, and its graph obeys the invariance law end to end."""

import pytest
import torch

from branchline.kernels.bench import Shape, SyntheticModel, fastest
from branchline.kernels.cpu.binding import Runner
from branchline.kernels.cpu.graph import GraphLimits

_SHAPE = Shape(2, 64, 4, 2, 16, 96, 160, 256)


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
def test_logits_do_not_depend_on_chunks(runner: Runner, pool: torch.dtype) -> None:
    """200 tokens in one step, in chunks, and with a row beside them: the same last logits."""
    model = SyntheticModel(runner, _SHAPE, pool, GraphLimits(512, 4, 4))
    ids = torch.randint(0, _SHAPE.vocabulary, (200,), dtype=torch.int32)

    def replay(rows: list[tuple[int, int]]) -> torch.Tensor:
        run = model.step(rows)
        start = 0
        for length, extend in rows:
            part = slice(start, start + extend)
            model.graph.inputs.input_ids[part] = ids[length - extend : length]
            start += extend
        run()
        return model.graph.outputs[0][: len(rows)].clone()

    whole = replay([(200, 200)])[0]
    assert torch.isfinite(whole).all()
    for pieces in ([137, 63], [1, 198, 1], [64, 64, 72]):
        done = 0
        for n in pieces:
            done += n
            last = replay([(done, n)])[0]
        assert torch.equal(last, whole)
    assert torch.equal(replay([(200, 1), (150, 150)])[0], whole)


def test_fastest_calls_once_more_than_it_repeats() -> None:
    calls: list[int] = []
    assert fastest(lambda: calls.append(1), 3) >= 0
    assert len(calls) == 4
