"""Pieces of answers that OpenAI's routes share: finish reasons, usage, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchline.runtime.core.outputs import FinishReason, TokenLogprob
from branchline.runtime.server.generation import Counts
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
