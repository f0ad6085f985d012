"""One vector from the hidden states of a prompt's tokens, whatever steps they came in.

Law: the vector depends on the states alone, to the bit: states are added one after the other in
float64, in the order of the tokens, so that no cut of a prompt into steps changes a sum. Knows
nothing of models or requests.
"""

from __future__ import annotations

import math

import numpy as np

from branchline.runtime.core.batch import Float32Array
from branchline.runtime.core.messages import Pooling

HiddenStates = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class PoolState:
    """What has been read of one prompt.

    Args:
        pooling: "last" keeps the last token's state, "mean" averages those of all tokens.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._total = np.zeros(0, dtype=np.float64)
        self._count = 0

    @property
    def needs_all(self) -> bool:
        """Every token of the prompt is read, so none may come from the prefix cache."""
        return self.pooling == "mean"

    def wanted(self, count: int, *, last: bool) -> int:
        """How many of a step's tokens are read, counted from its end.

        Args:
            count: tokens of the prompt in the step.
            last: the prompt ends with them.
        """
        return count if self.needs_all else int(last)

    def add(self, states: HiddenStates) -> None:
        """The next tokens' states: float32 [n, hidden]."""
        if not self._count:
            self._total = np.zeros(states.shape[1], dtype=np.float64)
        for state in states:  # numpy's own sums over rows promise no order
            self._total += state
        self._count += len(states)

    def restart(self) -> None:
        """The prompt will be computed again from where the cache leaves off."""
        self._count = 0

    def vector(self, *, dimensions: int | None, normalize: bool) -> Float32Array:
        """The pooled state: float32 [hidden], or its first `dimensions` numbers.

        Args:
            normalize: scale what is left to length 1; a vector of zeros stays as it is.
        """
        pooled = (self._total / max(self._count, 1))[:dimensions]
        length = math.sqrt(math.fsum((pooled * pooled).tolist())) if normalize else 1.0
        return (pooled / (length or 1.0)).astype(np.float32)
