"""A scripted engine that has adapters: loading is a matter of a dictionary, or of an error.

It keeps the promises of `AdapterPort`: versions count up, what is in use stays unless it is to be
drained, and what is drained takes no more requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from branchline.lang.backends.scripted import EventLoop, OnOutput, ScriptedEngine
from branchline.runtime.core.adapters import AdapterInfo, AdapterSource
from branchline.runtime.core.messages import EmbedRequest, EngineRequest
from branchline.runtime.core.outputs import EmbedResult, GenerateDelta, Output, RequestMeta
from branchline.runtime.errors import AdapterInUse, AdapterNotFound, BranchlineError

OnAdapter = Callable[[AdapterInfo | BranchlineError], None]


class AdaptedEngine(ScriptedEngine):
    """See module.

    Attributes:
        sources: what was loaded, in order.
        failures: errors of loads, by name.
        waiting: finishes the loads that were begun, where `held` is true.
    """

    def __init__(self, *names: str, latency_s: float = 0.0) -> None:
        super().__init__(lambda name, text: "a", EventLoop(), latency_s)
        self.sources: list[AdapterSource] = []
        self.requests: list[EngineRequest] = []
        self.failures: dict[str, BranchlineError] = {}
        self.held = False
        self.waiting: list[Callable[[], None]] = []
        self._infos: dict[str, AdapterInfo] = {}
        self._versions: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._drained: dict[str, OnAdapter] = {}
        for name in names:
            self._add(name, "", pin=False)

    def adapters(self) -> list[AdapterInfo]:
        return [info for info in self._infos.values() if info.name not in self._drained]

    def adapter(self, name: str) -> AdapterInfo | None:
        return next((info for info in self.adapters() if info.name == name), None)

    def list_adapters(self, on_done: Callable[[list[AdapterInfo] | BranchlineError], None]) -> None:
        on_done(self.adapters())

    def load_adapter(
        self, name: str, source: AdapterSource, on_done: OnAdapter, *, pin: bool = False
    ) -> None:
        self.sources.append(source)

        def finish() -> None:
            path = source if isinstance(source, str) else ""
            on_done(self.failures.get(name) or self._add(name, path, pin=pin))

        if self.held:
            self.waiting.append(finish)
        else:
            finish()

    def unload_adapter(self, name: str, on_done: OnAdapter, *, drain: bool = False) -> None:
        info = self._infos.get(name)
        if info is None or name in self._drained:
            on_done(AdapterNotFound("no adapter of this name is loaded", value=name))
        elif not self._users[name]:
            on_done(self._infos.pop(name))
        elif drain:
            self._drained[name] = on_done
        else:
            on_done(AdapterInUse("sequences use the adapter", value=name))

    def submit(self, request: EngineRequest, on_output: OnOutput) -> None:
        name = request.adapter
        if name and name not in {info.name for info in self.adapters()}:
            raise AdapterNotFound("no adapter of this name is loaded", value=name)
        self.requests.append(request)
        self._users[name] += 1

        def take(output: Output) -> None:
            on_output(output)
            if not isinstance(output, GenerateDelta):
                self._users[name] -= 1
                if not self._users[name] and name in self._drained:
                    self._drained.pop(name)(self._infos.pop(name))

        if isinstance(request, EmbedRequest):
            meta = RequestMeta(finish_reason="stop", prompt_tokens=1, adapter=name)
            result = EmbedResult(request_id=request.id, embedding=[1.0], meta=meta)
            self.call_soon(lambda: take(result))
        else:
            super().submit(request, take)

    def _add(self, name: str, path: str, *, pin: bool) -> AdapterInfo:
        self._versions[name] += 1
        info = AdapterInfo(
            name=name, version=self._versions[name], path=path, rank=8, pinned=pin, state="host"
        )
        self._infos[name] = msgspec.structs.replace(info)
        return info
