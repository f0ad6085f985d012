"""A lane's tokens as what an OpenAI-compatible server takes: chat messages, or plain text.

Lanes of this backend hold bytes and the turn marks of `PlainTurns`, so nothing that a program
appends can be mistaken for a mark. Raises `UnsupportedFeature` for what no such server can be
asked, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from branchline.lang.errors import UnsupportedFeature
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

Json = dict[str, Any]

_TOKENIZER = ByteTokenizer()
(_TURN,) = _TOKENIZER.encode("<|turn|>", special=True)
(_END,) = _TOKENIZER.encode("<|end|>", special=True)

NO_LIMIT = 1 << 40
"""More tokens than any model's context: says that there is no limit."""


class Conversation(NamedTuple):
    """A prompt in turns.

    Attributes:
        messages: finished turns.
        begun: what stands at the beginning of the assistant's open turn already.
    """

    messages: list[Json]
    begun: str


def read_prompt(ids: Sequence[int]) -> Conversation | str:
    """Chat turns, or the plain text of a prompt that has none."""
    kept = list(ids[1:] if ids and ids[0] == _TOKENIZER.bos_id else ids)
    if _TURN not in kept:
        return _TOKENIZER.decode(kept)
    first, *turns = _split(kept, _TURN)
    messages: list[Json] = []
    outside = _TOKENIZER.decode(first)
    for turn in turns:
        content, *after = _split(turn, _END)
        role, _, text = _TOKENIZER.decode(content).partition("\n")
        if outside.strip():
            raise _unsupported("text outside of chat turns", outside)
        if not after and turn is turns[-1]:
            if role != "assistant":
                raise _unsupported(f"generating inside a turn of {role!r}", role)
            return Conversation(messages, text)
        messages.append({"role": role, "content": text})
        outside = _TOKENIZER.decode(after[0]) if after else ""
    raise _unsupported("generating outside of a chat turn after turns", messages[-1]["role"])


def _split(ids: list[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _unsupported(what: str, value: object) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"an OpenAI-compatible server cannot do this: {what}",
        value=value,
        hint="Put all text into system, user and assistant turns and generate in an assistant "
        "turn, use no turns at all, or run on an Engine or Endpoint.",
    )


def sampling_fields(sampling: SamplingParams, *, chat: bool, server: str) -> Json:
    """Body fields of one request's choices; what is the default of the API is left out."""
    fields: Json = {"temperature": sampling.temperature}
    for name in ("top_p", "n", "frequency_penalty", "presence_penalty", "seed", "top_k", "min_p",
                 "repetition_penalty", "min_tokens", "ignore_eos", "stop_regex"):  # fmt: skip
        value = getattr(sampling, name)
        if value != getattr(_DEFAULTS, name):
            fields[name] = value
    if sampling.speculative is not None and server == "branchline":
        fields["speculative"] = sampling.speculative  # changes no output: others need not know it
    if sampling.max_tokens is not None and sampling.max_tokens < NO_LIMIT >> 1:
        # OpenAI's own server has given the field another name; all others know the old one.
        name = "max_completion_tokens" if chat and server == "openai" else "max_tokens"
        fields[name] = sampling.max_tokens
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.keep_stop:
        fields["no_stop_trim" if server == "sglang" else "include_stop_str_in_output"] = True
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        fields |= (
            {"logprobs": True, "top_logprobs": sampling.logprobs}
            if chat
            else {"logprobs": sampling.logprobs}
        )
    if sampling.constraint is not None:
        fields |= _constraint_fields(sampling.constraint, server)
    return fields


_DEFAULTS = SamplingParams()


def _constraint_fields(constraint: Constraint, server: str) -> Json:
    kind, text = constraint.kind, constraint.text
    white: Json = {}
    if constraint.whitespace != "fixed":
        if server != "branchline":
            raise UnsupportedFeature(
                "only a branchline server takes a policy for white space in JSON",
                value=constraint.whitespace,
                hint="Leave whitespace out, or run on an Engine or Endpoint.",
            )
        white = {"whitespace": constraint.whitespace}
    if kind == "json_schema":
        schema = {"name": "value", "schema": msgspec.json.decode(text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}, **white}
    if server == "sglang":
        return {kind: text}
    value = msgspec.json.decode(text) if kind in ("choices", "structural_tag") else text
    return {"structured_outputs": {_STRUCTURED[kind]: value}, **white}


_STRUCTURED = {
    "regex": "regex",
    "choices": "choice",
    "ebnf": "grammar",
    "lark": "grammar",
    "structural_tag": "structural_tag",
}
