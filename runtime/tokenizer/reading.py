"""A sequence being read, by a reader that may break.

Law: one final output whatever happens: a reader that breaks ends its own sequence with an error and
holds up nobody else's. The same in the engine's process and in one of its own.
"""

from __future__ import annotations

import logging

import msgspec

from branchline.runtime.core.outputs import FinishReason, GenerateResult, Output
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens
from branchline.runtime.errors import BranchlineError, wrap
from branchline.runtime.tokenizer.sequence_reader import SequenceReader
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

logger = logging.getLogger(__name__)


class Reading:
    """See module.

    Args:
        tokenizer: of the model.
        opened: how the sequence is read.

    Attributes:
        as_it_comes: its ids are wanted as they come; else all of them with its end.
        aside: it is read on a side thread, so that no pattern holds up the text of others.

    Raises:
        InvalidRequest: the stop pattern cannot be used.
    """

    def __init__(self, tokenizer: TokenizerLike, opened: SequenceOpen) -> None:
        self.as_it_comes = opened.needs_text
        self.aside = opened.stop_regex is not None
        self._reader = SequenceReader(tokenizer, opened)
        self._error: BranchlineError | None = None

    def push(self, tokens: SequenceTokens) -> tuple[list[Output], FinishReason | None]:
        """(what new ids let the sequence's reader see, why no more are wanted if these say so)."""
        if self._error is not None or self._reader.stopped:
            return [], None
        try:
            outputs = self._reader.push(tokens)
        except Exception as error:
            logger.exception("reading sequence %s failed", tokens.request_id)
            self.fail(wrap(error))
            return [], "abort"
        return outputs, "stop" if self._reader.stopped else None

    def end(self, end: SequenceEnd) -> list[Output]:
        """What the sequence's reader sees last."""
        error = self._error
        if error is None:
            try:
                return self._reader.end(end)
            except Exception as failure:
                logger.exception("reading sequence %s failed", end.request_id)
                error = wrap(failure)
        failed = GenerateResult(
            request_id=end.request_id,
            text="",
            token_ids=[],
            meta=msgspec.structs.replace(end.meta, finish_reason="error"),
            error=error.to_wire(),
        )
        return [failed]

    def fail(self, error: BranchlineError) -> None:
        """Read no more of it; its end says so."""
        self._error = error
