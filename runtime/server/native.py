"""`POST /generate` as SGLang's clients know it: text or ids in, text, ids and counts out.

Law: the last event of each sequence of a stream holds exactly the answer without a stream; events
before it hold its beginning, as SGLang sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from branchline.runtime.core.outputs import (
    GenerateDelta,
    GenerateResult,
    RequestMeta,
    TokenLogprob,
)
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind, SamplingParams
from branchline.runtime.errors import UnsupportedFeature
from branchline.runtime.server.constraints import only_one
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused, native_body
from branchline.runtime.server.fields import bias_of, checked, top_k_of
from branchline.runtime.server.generation import Job, Options, generate, response_id
from branchline.runtime.server.limits import Limits
from branchline.runtime.server.native_types import GenerateBody, NativeSampling
from branchline.runtime.server.prompts import Prompts, prompts_of
from branchline.runtime.server.wire import event_stream, json_response, read_body
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

Json = dict[str, Any]
Entry = tuple[float | None, int, str | None]
T = TypeVar("T")


BODIES: dict[str, type[Any]] = {"/generate": GenerateBody}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    handler = Generate(context)
    return [web.post("/generate", handler.handle), web.put("/generate", handler.handle)]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What one prompt's client wants to read.

    Attributes:
        logprobs: wanted at all.
        start: first token of the prompt whose log-probability is wanted.
        top: alternatives for each token.
        silent: the output was asked to have no tokens.
        prompt: the prompt's ids are wanted.
    """

    prompt_ids: list[int]
    name: str
    logprobs: bool
    start: int
    top: int
    silent: bool
    prompt: bool


class Generate:
    """The handler."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._prompts = Prompts(context)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        context = self._context
        body = await read_body(request, GenerateBody, context.limits)
        if body.return_hidden_states:
            raise UnsupportedFeature("return_hidden_states is not supported", hint="Leave it out.")
        prompts, single = await self._prompt_ids(body)
        names = _names(body, len(prompts))
        jobs, wishes = self._plan(body, prompts, names)
        options = Options(
            names[0],
            stream=body.stream,
            salt=body.extra_key or body.cache_salt or "",
            priority=body.priority or 0,
            deadline_s=body.deadline_s,
        )
        texts = bool(body.return_text_in_logprobs)
        outputs = [
            [_Output(wish, context.tokenizer, texts) for _ in range(job.sampling.n)]
            for wish, job in zip(wishes, jobs, strict=True)
        ]
        flat = [output for group in outputs for output in group]
        plain = single and len(flat) == 1
        if not body.stream:
            async with generate(request, context, jobs, options) as steps:
                async for step in steps:
                    outputs[step.job][step.sequence].read(step.output)
            shown = [output.show() for output in flat]
            return json_response(shown[0] if plain else shown)
        index = {id(output): i for i, output in enumerate(flat)}
        async with event_stream(request, context.limits, native_body) as events:
            async with generate(request, context, jobs, options) as steps:
                async for step in steps:
                    output = outputs[step.job][step.sequence]
                    output.read(step.output)
                    place = {} if plain else {"index": index[id(output)]}
                    await events.send({**output.show(), **place})
            await events.send_raw(b"[DONE]")
        return events.response

    async def _prompt_ids(self, body: GenerateBody) -> tuple[list[list[int]], bool]:
        """(ids of each prompt, whether it was one and not a list)."""
        if (body.text is None) == (body.input_ids is None):
            raise Refused(400, "send either text or input_ids", param="text")
        name, given = ("input_ids", body.input_ids) if body.text is None else ("text", body.text)
        assert given is not None
        found = await self._prompts.ids(prompts_of(given, name))
        return found, isinstance(given, str) or isinstance(given[0], int)

    def _plan(
        self, body: GenerateBody, prompts: Sequence[list[int]], names: Sequence[str]
    ) -> tuple[list[Job], list[_Wish]]:
        count = len(prompts)
        params = _each("sampling_params", body.sampling_params, count, NativeSampling())
        logprobs = _each("return_logprob", body.return_logprob, count, False)
        starts = _each("logprob_start_len", body.logprob_start_len, count, -1)
        tops = _each("top_logprobs_num", body.top_logprobs_num, count, 0)
        asked: list[str | None] = _each("lora_path", body.lora_path, count, None)
        adapters = {name: self._context.choose(None, name).adapter for name in set(asked)}
        jobs, wishes = [], []
        for i, ids in enumerate(prompts):
            start = len(ids) - 1 if starts[i] < 0 else min(starts[i], len(ids) - 1)
            top = tops[i] if logprobs[i] else 0
            silent = params[i].max_new_tokens == 0
            prompt = bool(body.return_prompt_token_ids)
            wishes.append(_Wish(ids, names[i], logprobs[i], start, top, silent, prompt))
            sampling = _sampling(
                params[i],
                self._context.limits,
                logprobs=top if logprobs[i] else None,
                prompt_logprobs=top if logprobs[i] and start < len(ids) - 1 else None,
            )
            jobs.append(Job(ids, sampling, adapters[asked[i]]))
        return jobs, wishes


@dataclass
class _Output:
    """One sequence, as far as it is known."""

    wish: _Wish
    tokenizer: TokenizerLike
    texts: bool
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    result: GenerateResult | None = None

    def read(self, output: GenerateDelta | GenerateResult) -> None:
        """Take what is new."""
        if isinstance(output, GenerateResult):
            self.result = output
            self.text, self.ids, self.logprobs = output.text, output.token_ids, output.logprobs
        else:
            self.text += output.text
            self.ids += output.token_ids
            self.logprobs += output.logprobs
        if self.wish.silent:
            self.text, self.ids, self.logprobs = "", [], []

    def show(self) -> Json:
        """The answer, or its beginning."""
        meta = self.result.meta if self.result is not None else RequestMeta()
        info: Json = {
            "id": self.wish.name,
            "finish_reason": None if self.result is None else self._finish(meta),
            "prompt_tokens": len(self.wish.prompt_ids),
            "completion_tokens": len(self.ids),
            "cached_tokens": meta.cached_tokens,
            "weight_version": "default",
        }
        if self.result is not None:
            info["e2e_latency"] = meta.latency_s
        if self.wish.logprobs:
            info |= self._logprobs()
        shown: Json = {"text": self.text, "output_ids": self.ids, "meta_info": info}
        return shown | {"prompt_token_ids": self.wish.prompt_ids} if self.wish.prompt else shown

    def _finish(self, meta: RequestMeta) -> Json:
        if self.wish.silent:
            return {"type": "length", "length": 0}
        if meta.finish_reason == "length":
            return {"type": "length", "length": len(self.ids)}
        if meta.finish_reason == "abort":
            return {"type": "abort", "message": "the request was ended", "status_code": None}
        return {"type": "stop", "matched": meta.matched}

    def _logprobs(self) -> Json:
        wish = self.wish
        found: Json = {"output_token_logprobs": [self._entry(e) for e in self.logprobs]}
        if wish.top:
            found["output_top_logprobs"] = [self._top(entry) for entry in self.logprobs]
        if self.result is None:
            return found
        # The first token that is asked for has nothing before it that was looked at.
        first = self._named(None, wish.prompt_ids[wish.start])
        entries = self.result.prompt_logprobs[wish.start :]
        found["input_token_logprobs"] = [first, *(self._entry(entry) for entry in entries)]
        if wish.top:
            found["input_top_logprobs"] = [None, *(self._top(entry) for entry in entries)]
        return found

    def _entry(self, entry: TokenLogprob) -> Entry:
        return self._named(entry.logprob, entry.token_id)

    def _top(self, entry: TokenLogprob) -> list[Entry]:
        return [self._named(value, token) for token, value in entry.top[: self.wish.top]]

    def _named(self, logprob: float | None, token_id: int) -> Entry:
        text = self.tokenizer.token_text(token_id) if self.texts else None
        return (logprob, token_id, text)


def _sampling(
    params: NativeSampling, limits: Limits, *, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    kinds: tuple[ConstraintKind, ...] = ("json_schema", "regex", "ebnf", "structural_tag")
    given: dict[str, tuple[ConstraintKind, Any]] = {
        kind: (kind, getattr(params, kind)) for kind in kinds if getattr(params, kind)
    }
    constraint: Constraint | None = only_one(given, limits, params.whitespace)
    stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop or ())
    patterns = params.stop_regex
    if isinstance(patterns, list):
        patterns = "|".join(f"(?:{pattern})" for pattern in patterns)
    most = params.max_new_tokens
    chosen = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "min_tokens": params.min_new_tokens,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "repetition_penalty": params.repetition_penalty,
        "n": params.n,
        "ignore_eos": params.ignore_eos,
        "skip_special_tokens": params.skip_special_tokens,
        "speculative": params.speculative,
    }
    sampling = SamplingParams(
        top_k=top_k_of(params.top_k),
        max_tokens=1 if most == 0 else most,
        stop=stop,
        stop_token_ids=tuple(params.stop_token_ids or ()),
        stop_regex=patterns or None,
        keep_stop=bool(params.no_stop_trim),
        logit_bias=bias_of(params.logit_bias),
        seed=params.sampling_seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
    )
    given_values = {name: value for name, value in chosen.items() if value is not None}
    return checked(msgspec.structs.replace(sampling, **given_values), limits)


def _each(name: str, value: T | list[T] | None, count: int, default: T) -> list[T]:
    """One value for each prompt, from one or a list."""
    if value is None:
        return [default] * count
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise Refused(400, f"{name} has {len(value)} entries for {count} prompts", param=name)
    return value


def _names(body: GenerateBody, count: int) -> list[str]:
    if isinstance(body.rid, list):
        return _each("rid", body.rid, count, "")
    name = response_id("", body.rid)
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
