"""Protocol-buffer messages to the engine's own, and back.

Invariants: a field that a client did not set has the engine's default, not protobuf's zero; what is
read is read, checked and bounded by the code that does so for HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
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
from branchline.runtime.core.sampling_params import (
    Constraint,
    ConstraintKind,
    SamplingParams,
    Whitespace,
)
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.constraints import only_one
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.fields import checked
from branchline.runtime.server.generation import deadline_of
from branchline.runtime.server.grpc_api import branchline_pb2 as pb
from branchline.runtime.server.keys import Caller
from branchline.runtime.server.limits import Limits, check
from branchline.runtime.server.prompts import Prompts

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
    "speculative",
)
_POOLINGS: dict[int, Pooling] = {pb.LAST: "last", pb.MEAN: "mean"}
_WHITESPACE: dict[str, Whitespace | None] = {"": None}
_WHITESPACE |= {one: one for one in get_args(Whitespace)}
_META = frozenset(RequestMeta.__struct_fields__) - {"matched"}
Message = pb.GenerateRequest | pb.ScoreRequest | pb.EmbedRequest


class Requests:
    """Makes engine requests of a server's messages, each under an id of the server's own.

    Every method takes who asks, and the seconds that the call itself has left (None = no limit).

    Raises:
        InvalidRequest: a value is out of range or beyond a limit.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._prompts = Prompts(context)

    async def generate(
        self, message: pb.GenerateRequest, caller: Caller, left_s: float | None
    ) -> GenerateRequest:
        """For `Generate`."""
        limits = self._context.limits
        sampling = checked(_sampling(message.sampling, limits), limits)
        check("max_sequences", "n", sampling.n, limits.max_sequences)
        return GenerateRequest(
            sampling=sampling, stream=message.stream, **await self._shared(message, caller, left_s)
        )

    async def score(
        self, message: pb.ScoreRequest, caller: Caller, left_s: float | None
    ) -> ScoreRequest:
        """For `Score`."""
        check("max_prompts", "choices", len(message.choices), self._context.limits.max_prompts)
        choices = await self._ids(message.choices, "a choice", start=False)
        return ScoreRequest(choices=choices, **await self._shared(message, caller, left_s))

    async def embed(
        self, message: pb.EmbedRequest, caller: Caller, left_s: float | None
    ) -> EmbedRequest:
        """For `Embed`."""
        pooling = _POOLINGS.get(message.pooling)
        if pooling is None:
            raise InvalidRequest("unknown pooling", value=message.pooling, hint="Use LAST or MEAN.")
        return EmbedRequest(
            pooling=pooling,
            normalize=message.normalize if message.HasField("normalize") else True,
            dimensions=message.dimensions if message.HasField("dimensions") else None,
            **await self._shared(message, caller, left_s),
        )

    async def _shared(
        self, message: Message, caller: Caller, left_s: float | None
    ) -> dict[str, Any]:
        """What every request has."""
        [prompt_ids] = await self._ids([message.prompt], "the prompt", start=True)
        times = [seconds for seconds in (message.deadline_s or None, left_s) if seconds is not None]
        return {
            "id": self._context.client.new_id(),
            "prompt_ids": prompt_ids,
            "namespace": caller.namespace(),
            "priority": message.priority,
            "deadline": deadline_of(self._context.limits, min(times, default=None)),
            "adapter": self._context.choose(None, message.adapter or None).adapter,
        }

    async def _ids(
        self, messages: Sequence[pb.Prompt], what: str, *, start: bool
    ) -> list[list[int]]:
        given: list[str | list[int]] = []
        for message in messages:
            kind = message.WhichOneof("kind")
            if kind is None:
                raise InvalidRequest(f"{what} is not set", hint="Give it as text or as token ids.")
            given.append(list(message.tokens.ids) if kind == "tokens" else message.text)
        return await self._prompts.ids(given, names=repeat(what), start=start)


def delta_response(output: GenerateDelta, index: int, request_id: str) -> pb.GenerateResponse:
    """A piece of text on its way."""
    delta = pb.Delta(
        text=output.text,
        token_ids=output.token_ids,
        logprobs=_logprobs(output.logprobs),
        forced=output.forced,
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
        forced=output.forced,
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


def _sampling(message: pb.SamplingParams, limits: Limits) -> SamplingParams:
    given: dict[str, Any] = {
        name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)
    }
    for name in ("stop", "stop_token_ids"):
        given[name] = tuple(getattr(message, name))
    if message.logit_bias:
        given["logit_bias"] = dict(message.logit_bias)
    if message.HasField("constraint"):
        given["constraint"] = _constraint(message.constraint, limits)
    return SamplingParams(**given)


def _constraint(message: pb.Constraint, limits: Limits) -> Constraint | None:
    if message.whitespace not in _WHITESPACE:
        raise InvalidRequest(
            "no policy for white space",
            value=message.whitespace,
            hint=f"Use one of {', '.join(filter(None, _WHITESPACE))}.",
        )
    kind = message.WhichOneof("kind")
    given: dict[str, tuple[ConstraintKind, Any]] = {}
    if kind is not None:
        value = getattr(message, kind)
        given[kind] = (kind, list(value.texts) if kind == "choices" else value)
    return only_one(given, limits, _WHITESPACE[message.whitespace])


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
