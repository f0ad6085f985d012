"""The engine in this process: a model that generates, scores and embeds, called from anywhere.

Invariant: user code never runs on the loop thread and never blocks it; every call ends with a
result or a typed error. Programs are run by `runtime.programs.executor` on `Engine.core`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import msgspec

from branchline.runtime.core.adapters import (
    AdapterInfo,
    AdapterSource,
    check_adapter_source,
)
from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    Pooling,
    ScoreRequest,
)
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult, Output, ScoreResult
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.sequence import names_of
from branchline.runtime.engine_client import EngineClient, Item, raise_if_failed
from branchline.runtime.engine_core import EngineCore
from branchline.runtime.errors import BranchlineError, InvalidRequest
from branchline.runtime.launch.assemble import assemble

Prompt = str | Sequence[int]
Sampling = SamplingParams | dict[str, Any] | None


class Engine:
    """A model, its memory and its scheduler.

    Args:
        model: catalog name, Hugging Face directory or .gguf file.
        settings: fields of the config sections (see docs/configuration.md); an unknown one is an
            `InvalidRequest` that names the nearest.

    Raises:
        ModelLoadError, CatalogError: the model cannot be had or read.
        OutOfMemory: the settings ask for more memory than there is.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        if model is not None:
            settings["model"] = model
        self._parts = assemble(settings)
        self.core: EngineCore = self._parts.core
        self.tokenizer = self._parts.tokenizer
        self._client = EngineClient(self.core)
        # Also at exit: native kernel threads must not outlive the step that uses them.
        self._finalizer = weakref.finalize(self, self._parts.close)

    # -- generation ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] = None,
        **options: Any,
    ) -> Any:
        """Continue one prompt or many; waits.

        Args:
            prompts: text, token ids, or a list of either.
            sampling: `SamplingParams`, or its fields as a dict; for a list of prompts also a list
                of as many.
            options: fields of `SamplingParams` (over `sampling`), and `priority`, `deadline_s`,
                `namespace`, `adapter` (the name of a loaded one; for a list of prompts also a
                list of as many), `timeout_s`.

        Returns:
            A `GenerateResult`, or a list of n of them when `n` > 1; for a list of prompts, a list
            in their order.

        Raises:
            BranchlineError: the first failure; the other requests are ended.
        """
        batch, single = _batch(prompts)
        each = _for_each(sampling, batch, "sampling parameters")
        adapters = _for_each(options.get("adapter", ""), batch, "adapters")
        requests = [
            self._request(prompt, one, options | {"adapter": adapter})
            for prompt, one, adapter in zip(batch, each, adapters, strict=True)
        ]
        results = self._run(requests, options.get("timeout_s"))
        groups = [_group(request, results) for request in requests]
        return groups[0] if single else groups

    async def agenerate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """`generate` for one prompt on an event loop; cancelling the task ends the request."""
        request = self._request(prompt, sampling, options)
        results = await self._client.results(request)
        return results[0] if request.sampling.n == 1 else results

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | dict[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[GenerateDelta | GenerateResult]:
        """Yield `GenerateDelta`s, then the `GenerateResult`. Leaving the loop ends the request; a
        failure is raised inside it."""
        request = self._request(prompt, sampling, options, stream=True)
        inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._client.start(request, inbox.put)
        left = request.sampling.n
        try:
            while left:
                output = raise_if_failed(inbox.get())
                left -= isinstance(output, GenerateResult)
                assert isinstance(output, GenerateDelta | GenerateResult)
                yield output
        finally:
            if left:
                self.abort(request.id)

    async def astream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[GenerateDelta | GenerateResult]:
        """`stream` on an event loop."""
        request = self._request(prompt, sampling, options, stream=True)
        async with contextlib.aclosing(self._client.run(request)) as outputs:
            async for output in outputs:
                assert isinstance(output, GenerateDelta | GenerateResult)
                yield output

    def score(self, prompt: Prompt, choices: Sequence[Prompt], **options: Any) -> ScoreResult:
        """Log-probabilities of each choice's tokens after the prompt, in one tree forward.

        Args:
            prompt: text or token ids.
            choices: text or token ids of each.
            options: `priority`, `deadline_s`, `namespace`, `adapter`, `timeout_s`.
        """
        _check_common(options)
        request = ScoreRequest(
            id=self._client.new_id(),
            prompt_ids=self._encode(prompt),
            choices=[self._encode(choice) for choice in choices],
            **_common(options),
        )
        result = self._run([request], options.get("timeout_s"))[request.id]
        assert isinstance(result, ScoreResult)
        return result

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        dimensions: int | None = None,
        **options: Any,
    ) -> Any:
        """A vector for one prompt or for each of many; waits.

        Args:
            prompts: text, token ids, or a list of either.
            pooling: "last": the final hidden state of the last token; "mean": the average over all
                tokens, for which a prompt is computed whole, without what the cache has of it.
            normalize: scale vectors to length 1.
            dimensions: only the first so many numbers, for models that were trained for it.
            options: `priority`, `deadline_s`, `namespace`, `adapter`, `timeout_s`.

        Returns:
            An `EmbedResult`; for a list of prompts, a list in their order.

        Raises:
            BranchlineError: the first failure; the other requests are ended.
        """
        _check_common(options)
        batch, single = _batch(prompts)
        requests = [
            EmbedRequest(
                id=self._client.new_id(),
                prompt_ids=self._encode(prompt),
                pooling=pooling,
                normalize=normalize,
                dimensions=dimensions,
                **_common(options),
            )
            for prompt in batch
        ]
        results = self._run(requests, options.get("timeout_s"))
        found = [results[request.id] for request in requests]
        return found[0] if single else found

    def abort(self, request_id: str) -> None:
        """End a request; unknown ids are ignored."""
        self._client.abort(request_id)

    # -- adapters --------------------------------------------------------------------------------

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        return self.core.adapters()

    def load_adapter(
        self, name: str, source: AdapterSource | PathLike[str], *, pin: bool = False
    ) -> AdapterInfo:
        """Load an adapter while others are served; waits until requests can name it.

        Under a name that is taken it becomes the next version: requests that come from now on get
        it, those that there are keep theirs.

        Args:
            source: a folder in PEFT's format, the name of one that comes with the package, or
                `AdapterFiles`.
            pin: keep it on the device.

        Raises:
            AdapterError, InvalidRequest: it cannot be loaded; nothing has changed.
        """
        found = check_adapter_source(source)
        return self._answer(lambda done: self.core.load_adapter(name, found, done, pin=pin))

    def unload_adapter(self, name: str, *, drain: bool = False) -> AdapterInfo:
        """Forget an adapter; waits until nothing uses it.

        Args:
            drain: take no more requests for it and wait for those that there are; else they are a
                reason to refuse.

        Raises:
            AdapterNotFound, AdapterInUse: it stays as it is.
        """
        return self._answer(lambda done: self.core.unload_adapter(name, done, drain=drain))

    # -- care ------------------------------------------------------------------------------------

    def flush_cache(self) -> int:
        """Drop every cached prefix that nothing holds; returns the tokens freed."""
        return int(self._on_loop(lambda: self.core.cache.flush()))

    def info(self) -> dict[str, Any]:
        """Model, settings, decisions, counters: plain data."""
        return self.core.info()

    def close(self) -> None:
        """End all requests with an error and free the model. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------------

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, special=True)
        return list(prompt)

    def _request(
        self,
        prompt: Prompt,
        sampling: SamplingParams | dict[str, Any] | None,
        options: dict[str, Any],
        *,
        stream: bool = False,
    ) -> GenerateRequest:
        return GenerateRequest(
            id=self._client.new_id(),
            prompt_ids=self._encode(prompt),
            sampling=_sampling(sampling, options),
            stream=stream,
            **_common(options),
        )

    def _run(self, requests: Sequence[EngineRequest], timeout_s: float | None) -> dict[str, Output]:
        inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._client.start_all(requests, inbox.put)
        left = sum(len(names_of(request)) for request in requests)
        results: dict[str, Output] = {}
        end = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while left:
                wait = None if end is None else max(0.0, end - time.monotonic())
                output = raise_if_failed(inbox.get(timeout=wait))
                results[output.request_id] = output
                left -= 1
        except queue.Empty:
            raise TimeoutError(f"no result within {timeout_s} s") from None
        finally:
            if left:
                for request in requests:
                    self.abort(request.id)
        return results

    def _answer(
        self, ask: Callable[[Callable[[AdapterInfo | BranchlineError], None]], None]
    ) -> AdapterInfo:
        """Ask on the loop thread and wait for the answer, which may come later."""
        box: queue.SimpleQueue[AdapterInfo | BranchlineError] = queue.SimpleQueue()
        self._on_loop(lambda: ask(box.put))
        found = box.get()
        if isinstance(found, BranchlineError):
            raise found
        return found

    def _on_loop(self, fn: Callable[[], Any]) -> Any:
        """Run `fn` on the loop thread and wait for what it returns."""
        if self.core.loop.on_thread:
            return fn()
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.append(fn())
            except Exception as error:
                box.append(error)
            done.set()

        self.core.call_soon(run)
        done.wait()
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


def _batch(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Any], bool]:
    """(the prompts, whether it was a single one)."""
    if isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int)):
        return [prompts], True
    return list(prompts), False


def _for_each(value: Any, batch: list[Any], what: str) -> list[Any]:
    """`value` for each prompt of a batch; a list has one for each already."""
    each = list(value) if isinstance(value, list | tuple) else [value] * len(batch)
    if len(each) != len(batch):
        raise InvalidRequest(
            f"there are not as many {what} as prompts",
            value=f"{len(each)} for {len(batch)}",
            hint="Give one for all, or a list with one for each prompt.",
        )
    return each


_COMMON = frozenset({"priority", "deadline_s", "namespace", "adapter", "timeout_s"})


def _check_common(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - _COMMON)
    if unknown:
        raise InvalidRequest(
            f"unknown option {unknown[0]!r}",
            value=options[unknown[0]],
            hint=f"Known: {', '.join(sorted(_COMMON))}.",
        )


def _common(options: dict[str, Any]) -> dict[str, Any]:
    deadline_s = options.get("deadline_s")
    return {
        "priority": options.get("priority", 0),
        "namespace": options.get("namespace", ""),
        "adapter": options.get("adapter") or "",
        "deadline": None if deadline_s is None else time.monotonic() + deadline_s,
    }


def _sampling(
    sampling: SamplingParams | dict[str, Any] | None, options: dict[str, Any]
) -> SamplingParams:
    fields = dict(sampling) if isinstance(sampling, dict) else {}
    fields |= {name: value for name, value in options.items() if name not in _COMMON}
    unknown = sorted(set(fields) - set(SamplingParams.__struct_fields__))
    if unknown:
        known = ", ".join(SamplingParams.__struct_fields__)
        raise InvalidRequest(
            f"unknown sampling option {unknown[0]!r}",
            value=fields[unknown[0]],
            hint=f"Known: {known}.",
        )
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    for name in ("stop", "stop_token_ids"):
        if name in fields:
            fields[name] = tuple(fields[name])
    base = sampling if isinstance(sampling, SamplingParams) else SamplingParams()
    return msgspec.structs.replace(base, **fields).validate()


def _group(request: GenerateRequest, results: dict[str, Output]) -> Any:
    if request.sampling.n == 1:
        return results[request.id]
    return [results[name] for name in names_of(request)]
