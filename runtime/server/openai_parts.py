"""Pieces of answers that OpenAI's routes share: envelope, usage, log-probabilities, details."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from branchline.runtime.core.outputs import (
    FinishReason,
    GenerateDelta,
    GenerateResult,
    TokenLogprob,
)
from branchline.runtime.server.fields import GenerationFields, StreamOptions
from branchline.runtime.server.generation import Counts, Options, response_id
from branchline.runtime.server.wire import EventStream
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

Json = dict[str, Any]

FINISH: dict[FinishReason, str] = {
    "stop": "stop",
    "constraint": "stop",
    "length": "length",
    "abort": "abort",
}
"""The engine's reasons in OpenAI's words; "abort" is SGLang's."""


def usage(counts: Counts) -> Json:
    """The `usage` object."""
    found: Json = {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.output,
        "total_tokens": counts.prompt + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
    if counts.reasoning is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": counts.reasoning}
    return found


def chat_logprobs(tokenizer: TokenizerLike, entries: Sequence[TokenLogprob], top: int) -> Json:
    """`logprobs` of a chat choice: each token with its alternatives."""
    return {
        "content": [
            {
                **_token(tokenizer, entry.token_id, entry.logprob),
                "top_logprobs": [_token(tokenizer, i, value) for i, value in entry.top[:top]],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _token(tokenizer: TokenizerLike, token_id: int, logprob: float) -> Json:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class Envelope:
    """What stands around the choices of one request: id and model, counts where they are wanted.

    Args:
        fields: the body.
        prefix: of an id that the client did not choose.
        kind: `object` of a whole answer.
        piece: `object` of a stream's chunks.

    Attributes:
        options: what holds for all of the request's jobs.
    """

    def __init__(
        self, fields: GenerationFields, model: str, *, prefix: str, kind: str, piece: str
    ) -> None:
        self.options = Options(
            response_id(prefix, fields.rid, fields.request_id),
            stream=bool(fields.stream),
            salt=fields.cache_salt or fields.extra_key or "",
            priority=fields.priority or 0,
            deadline_s=fields.deadline_s,
        )
        self._wanted = fields.stream_options or StreamOptions()
        self._head: Json = {
            "id": self.options.name,
            "object": piece if fields.stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Json], counts: Counts) -> Json:
        """An answer without a stream."""
        return {**self._head, "choices": choices, "usage": usage(counts)}

    def chunk(self, choice: Json, prompt_tokens: int, output_tokens: int) -> Json:
        """A chunk with one choice; the counts are those of its sequence so far."""
        if self._wanted.continuous_usage_stats:
            return self.whole([choice], Counts(prompt=prompt_tokens, output=output_tokens))
        return {**self._head, "choices": [choice]}

    async def end(self, events: EventStream, counts: Counts) -> None:
        """The end of a stream."""
        if self._wanted.include_usage:
            await events.send(self.whole([], counts))
        await events.send_raw(b"[DONE]")


class Details:
    """What `return_details` adds to the choices of one sequence: `details`.

    Args:
        wanted: else nothing is added.
    """

    def __init__(self, tokenizer: TokenizerLike, prompt_ids: Sequence[int], wanted: bool) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._wanted = wanted
        self._read = 0
        self._tokens: list[Json] = []

    def feed(self, output: GenerateDelta | GenerateResult) -> None:
        """Take the ids of a delta, or of the result of an output that was not streamed."""
        if not self._wanted:
            return
        forced = frozenset(output.forced)
        for position, token_id in enumerate(output.token_ids, self._read):
            raw = list(self._tokenizer.token_bytes(token_id))
            self._tokens.append({"id": token_id, "bytes": raw, "forced": position in forced})
        self._read += len(output.token_ids)

    def take(self) -> Json:
        """Tokens that no choice has brought."""
        if not self._wanted:
            return {}
        taken, self._tokens = self._tokens, []
        return {"details": {"tokens": taken}}

    def ending(self, result: GenerateResult) -> Json:
        """The same for the last choice: counts and times, and the prompt as the model read it."""
        if not self._wanted:
            return {}
        cached = result.meta.cached_tokens
        prompt = [
            self._tokenizer.decode(ids, skip_special=False)
            for ids in (self._prompt_ids[:cached], self._prompt_ids[cached:])
        ]
        found = self.take()
        found["details"] |= {
            "meta": msgspec.to_builtins(result.meta),
            "prompt": {"cached": prompt[0], "computed": prompt[1]},
        }
        return found


class CompletionLogprobs:
    """`logprobs` of completion choices, whose offsets go on from piece to piece."""

    def __init__(self, tokenizer: TokenizerLike, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._offset = 0

    def entry(self, entries: Sequence[TokenLogprob], first: Sequence[int] = ()) -> Json:
        """The object for more tokens.

        Args:
            first: ids before them that have no log-probability (the prompt's first token).
        """
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id in first:
            self._add(found, token_id, None, None)
        text = self._tokenizer.token_text
        for entry in entries:
            top = {text(i): value for i, value in entry.top[: self._top]}
            self._add(found, entry.token_id, entry.logprob, top)
        return found

    def _add(
        self, found: Json, token_id: int, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        text = self._tokenizer.token_text(token_id)
        found["tokens"].append(text)
        found["token_logprobs"].append(logprob)
        found["top_logprobs"].append(top)
        found["text_offset"].append(self._offset)
        self._offset += len(text)
