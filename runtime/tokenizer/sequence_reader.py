"""One output from ids to what its reader sees: text deltas, stops, the final result.

Laws: text, kept ids and finish reason are the same however the ids were split into steps; one
result for every sequence; all deltas together bring its text, ids, log-probabilities and marks.
Pure: no thread, no clock, no callback; the same code reads in the engine's process and in one of
its own.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from branchline.runtime.core.outputs import GenerateDelta, GenerateResult, Output, TokenLogprob
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens
from branchline.runtime.tokenizer.detokenizer import TextState
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


class SequenceReader:
    """Reads one sequence.

    Args:
        tokenizer: of the model.
        opened: how it is read.

    Attributes:
        stopped: its text has ended by a stop; later ids are ignored.

    Raises:
        InvalidRequest: the stop pattern cannot be used.
    """

    def __init__(self, tokenizer: TokenizerLike, opened: SequenceOpen) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stream = opened.stream
        self._skip_special = opened.skip_special_tokens
        self._logprobs: list[TokenLogprob] = []
        self._forced: list[int] = []
        self._given = 0  # ids that a delta has brought
        self._text = (
            TextState(
                tokenizer,
                stop=opened.stop,
                stop_regex=opened.stop_regex,
                keep_stop=opened.keep_stop,
                min_tokens=opened.min_tokens,
                section=opened.section,
                skip_special=opened.skip_special_tokens,
            )
            if opened.needs_text
            else None
        )

    def push(self, tokens: SequenceTokens) -> list[Output]:
        """What `tokens` let the reader see."""
        text = self._text
        if self.stopped or text is None:
            return []
        self._logprobs += tokens.logprobs
        self._forced += tokens.forced
        piece, hit = text.push(tokens.token_ids)
        self.stopped = hit is not None
        if not (self._stream and piece):
            return []
        if not text.settled:
            return [GenerateDelta(request_id=tokens.request_id, text=piece)]
        start, self._given = self._given, text.length
        delta = GenerateDelta(
            request_id=tokens.request_id,
            text=piece,
            token_ids=text.ids_from(start),
            logprobs=self._logprobs[start:],
            forced=self._marks(start, self._given),
        )
        return [delta]

    def end(self, end: SequenceEnd) -> list[Output]:
        """The result, behind the delta of what was held back."""
        outputs: list[Output] = []
        reason = end.meta.finish_reason
        logprobs = self._logprobs
        if self._text is None:
            kept = end.token_ids
            text = self._tokenizer.decode(kept, skip_special=self._skip_special)
            logprobs = end.logprobs
            self._forced = end.forced
        else:
            if end.token_ids:
                last = SequenceTokens(
                    request_id=end.request_id,
                    token_ids=end.token_ids,
                    logprobs=end.logprobs,
                    forced=end.forced,
                )
                outputs += self.push(last)
            tail, hit = ("", None) if self.stopped else self._text.push([], finished=True)
            self.stopped = self.stopped or hit is not None
            text, kept = self._text.text, self._text.kept_ids()
            rest = kept[self._given :]
            if self._stream and (tail or rest):
                outputs.append(
                    GenerateDelta(
                        request_id=end.request_id,
                        text=tail,
                        token_ids=rest,
                        logprobs=logprobs[self._given : len(kept)],
                        forced=self._marks(self._given, len(kept)),
                    )
                )
            if self.stopped and reason in ("length", "constraint", "abort"):
                reason = "stop"
        found = None if self._text is None else self._text.hit
        matched = end.meta.matched if found is None else found.matched
        meta = msgspec.structs.replace(
            end.meta, finish_reason=reason, matched=matched, output_tokens=len(kept)
        )
        outputs.append(
            GenerateResult(
                request_id=end.request_id,
                text=text,
                token_ids=kept,
                meta=meta,
                logprobs=logprobs[: len(kept)],
                prompt_logprobs=end.prompt_logprobs,
                forced=self._marks(0, len(kept)),
                error=None if reason == "stop" else end.error,
            )
        )
        return outputs

    def _marks(self, start: int, end: int) -> list[int]:
        """Forced positions within `[start, end)`."""
        marks = self._forced
        return marks[bisect_left(marks, start) : bisect_left(marks, end)] if marks else []
