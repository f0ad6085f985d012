"""The loss against autograd over whole logits."""

from __future__ import annotations

import pytest
import torch

from branchline.runtime.training import loss as module
from branchline.runtime.training.loss import soft_cross_entropy


@pytest.mark.parametrize("piece", [1 << 27, 40])
def test_loss_hits_and_gradient(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "PIECE", piece)  # a few rows at a time, or all
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((11, 6), generator=generator, requires_grad=True)
    head = torch.randn((13, 6), generator=generator)
    target = torch.randn((7, 13), generator=generator).softmax(-1)
    index = torch.randint(0, 7, (11,), generator=generator)
    weights = torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    found = soft_cross_entropy(hidden, head, target, index, weights)
    (3.0 * found.total).backward()  # type: ignore[no-untyped-call]
    have = hidden.grad
    hidden.grad = None
    logits = hidden @ head.T
    each = -(target[index] * logits.log_softmax(-1)).sum(-1)
    (3.0 * (each * weights).sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.total, (each * weights).sum())
    torch.testing.assert_close(have, hidden.grad)
    right = (logits.argmax(-1) == target[index].argmax(-1)).float()
    assert float(found.hits) == float((right * weights).sum())
