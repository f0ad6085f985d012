"""Protocol-buffer messages to the engine's own, and back.

Invariant: a field that a client did not set has the engine's default, not protobuf's zero.
"""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import msgspec

from branchline.runtime.core.messages import EmbedRequest, GenerateRequest, Pooling, ScoreRequest
from branchline.runtime.core.outputs import (
    EmbedResult,
    GenerateDelta,
    GenerateResult,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.sampling_params import Constraint, SamplingParams, Whitespace
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.grpc_api import branchline_pb2 as pb
from branchline.runtime.server.keys import Caller
from branchline.runtime.server.limits import check, check_depth

_OPTIONAL = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "stop_regex",
    "keep_stop",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "logprobs",
    "prompt_logprobs",
    "ignore_eos",
)
_POOLINGS: dict[int, Pooling] = {pb.LAST: "last", pb.MEAN: "mean"}
_WHITESPACE: dict[str, Whitespace] = {"": "fixed", **{one: one for one in get_args(Whitespace)}}
_META = frozenset(RequestMeta.__struct_fields__) - {"matched"}


def generate_request(
    message: pb.GenerateRequest, context: ServerContext, caller: Caller, deadline_s: float | None
) -> GenerateRequest:
    """A `GenerateRequest` under an id of the server's own.

    Args:
        deadline_s: seconds that the call itself has left; None = no limit.

    Raises:
        InvalidRequest: a value is out of range or beyond a limit.
    """
    limits = context.limits
    sampling = _sampling(message.sampling)
    check("max_n", "n", sampling.n, limits.max_n)
    check("max_stops", "stop", len(sampling.stop), limits.max_stops)
    check("max_stops", "stop_token_ids", len(sampling.stop_token_ids), limits.max_stops)
    check("max_logprobs", "logprobs", sampling.logprobs or 0, limits.max_logprobs)
    check("max_logit_bias", "logit_bias", len(sampling.logit_bias or ()), limits.max_logit_bias)
    if sampling.constraint is not None:
        _check_constraint(sampling.constraint, context)
    return GenerateRequest(
        id=context.client.new_id(),
        prompt_ids=prompt_ids(message.prompt, context),
        sampling=sampling.validate(),
        stream=message.stream,
        namespace=caller.namespace(),
        priority=message.priority,
        deadline=_deadline(message.deadline_s, deadline_s),
    )


def score_request(
    message: pb.ScoreRequest, context: ServerContext, caller: Caller, deadline_s: float | None
) -> ScoreRequest:
    """A `ScoreRequest`; raises as `generate_request`."""
    check("max_prompts", "choices", len(message.choices), context.limits.max_prompts)
    choices = [prompt_ids(choice, context, what="a choice") for choice in message.choices]
    if not choices:
        raise InvalidRequest("there are no choices", value="[]", hint="Give at least one.")
    return ScoreRequest(
        id=context.client.new_id(),
        prompt_ids=prompt_ids(message.prompt, context),
        choices=choices,
        namespace=caller.namespace(),
        priority=message.priority,
        deadline=_deadline(message.deadline_s, deadline_s),
    )


def embed_request(
    message: pb.EmbedRequest, context: ServerContext, caller: Caller, deadline_s: float | None
) -> EmbedRequest:
    """An `EmbedRequest`; raises as `generate_request`."""
    pooling = _POOLINGS.get(message.pooling)
    if pooling is None:
        raise InvalidRequest("unknown pooling", value=message.pooling, hint="Use LAST or MEAN.")
    return EmbedRequest(
        id=context.client.new_id(),
        prompt_ids=prompt_ids(message.prompt, context),
        pooling=pooling,
        normalize=message.normalize if message.HasField("normalize") else True,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
        namespace=caller.namespace(),
        priority=message.priority,
        deadline=_deadline(message.deadline_s, deadline_s),
    )


def prompt_ids(message: pb.Prompt, context: ServerContext, what: str = "the prompt") -> list[int]:
    """Token ids of a text or of ids; special-token strings in a text are special tokens."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest(f"{what} is not set", hint="Give it as text or as token ids.")
    if kind == "tokens":
        ids = list(message.tokens.ids)
        vocab_size = context.tokenizer.vocab_size
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    "a token id is outside the vocabulary",
                    value=token,
                    hint=f"Use ids from 0 to {vocab_size - 1}.",
                )
    else:
        ids = context.tokenizer.encode(message.text, special=True)
    if not ids:
        raise InvalidRequest(f"{what} is empty", value="''", hint="Give at least one token.")
    check("max_prompt_tokens", what, len(ids), context.limits.max_prompt_tokens)
    return ids


def delta_response(output: GenerateDelta, index: int, request_id: str) -> pb.GenerateResponse:
    """A piece of text on its way."""
    delta = pb.Delta(
        text=output.text, token_ids=output.token_ids, logprobs=_logprobs(output.logprobs)
    )
    return pb.GenerateResponse(request_id=request_id, index=index, delta=delta)


def result_response(output: GenerateResult, index: int, request_id: str) -> pb.GenerateResponse:
    """The end of one sequence."""
    result = pb.Result(
        text=output.text,
        token_ids=output.token_ids,
        logprobs=_logprobs(output.logprobs),
        prompt_logprobs=_logprobs(output.prompt_logprobs),
        meta=_meta(output.meta),
    )
    return pb.GenerateResponse(request_id=request_id, index=index, result=result)


def score_response(output: ScoreResult, request_id: str) -> pb.ScoreResponse:
    """All choices of a score request."""
    choices = [pb.ChoiceScore(token_logprobs=values) for values in output.token_logprobs]
    return pb.ScoreResponse(request_id=request_id, choices=choices, meta=_meta(output.meta))


def embed_response(output: EmbedResult, request_id: str) -> pb.EmbedResponse:
    """The vector of a prompt."""
    return pb.EmbedResponse(
        request_id=request_id, embedding=output.embedding, meta=_meta(output.meta)
    )


def _sampling(message: pb.SamplingParams) -> SamplingParams:
    given: dict[str, Any] = {
        name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)
    }
    for name in ("stop", "stop_token_ids"):
        given[name] = tuple(getattr(message, name))
    if message.logit_bias:
        given["logit_bias"] = dict(message.logit_bias)
    kind = message.constraint.WhichOneof("kind") if message.HasField("constraint") else None
    if kind == "choices":
        texts = list(message.constraint.choices.texts)
        given["constraint"] = Constraint(kind="choices", text=json.dumps(texts))
    elif kind is not None:
        text = getattr(message.constraint, kind)
        white = _WHITESPACE.get(message.constraint.whitespace)
        if white is None:
            raise InvalidRequest(
                "no policy for white space",
                value=message.constraint.whitespace,
                hint=f"Use one of {', '.join(get_args(Whitespace))}.",
            )
        given["constraint"] = Constraint(kind=kind, text=text, whitespace=white)
    return SamplingParams(**given)


def _check_constraint(constraint: Constraint, context: ServerContext) -> None:
    limits = context.limits
    size = len(constraint.text.encode("utf-8", "surrogatepass"))
    check("max_schema_bytes", "the constraint", size, limits.max_schema_bytes)
    if constraint.kind in ("json_schema", "structural_tag"):
        try:
            document = json.loads(constraint.text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"the constraint is not valid JSON: {error}", value=constraint.text
            ) from error
        check_depth("the constraint", document, limits.max_schema_depth)


def _deadline(asked_s: float, left_s: float | None) -> float | None:
    times = [seconds for seconds in (asked_s or None, left_s) if seconds is not None]
    return time.monotonic() + min(times) if times else None


def _logprobs(values: list[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=value.token_id,
            logprob=value.logprob,
            top=[pb.TopLogprob(token_id=token, logprob=logprob) for token, logprob in value.top],
        )
        for value in values
    ]


def _meta(meta: RequestMeta) -> pb.Meta:
    matched = "matched_id" if isinstance(meta.matched, int) else "matched_text"
    found = {**msgspec.structs.asdict(meta), matched: meta.matched}
    return pb.Meta(**{name: found[name] for name in _META | {matched} if found[name] is not None})
