"""The engine in this process, as a backend. The only file of the language that loads the runtime's
heavy half, and only when an `Engine` is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from branchline.lang.backends.base import Backend
from branchline.lang.errors import BackendError, InvalidRequest
from branchline.lang.sampling import DEFAULT_NAMES, check_names
from branchline.runtime.programs.protocol import ENGINE_FEATURES

if TYPE_CHECKING:
    from branchline.runtime.core.adapters import AdapterInfo, AdapterSource
    from branchline.runtime.programs.executor import ExecutorStats
    from branchline.runtime.programs.protocol import OpenProgram, Session, Sink


class Engine(Backend):
    """The runtime in this process.

    Args:
        model: a name of the catalog, or the path of a GGUF file or Hugging Face directory; None =
            the default model. `model_path`: another name of it.
        sampling_defaults: weakest layer of sampling options of programs that run here.
        settings: fields of the configuration's sections, by name; an unknown one is an error.

    Raises:
        BackendError: the runtime's packages are not installed.
        ModelLoadError, InvalidRequest, OutOfMemory: see the message.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        sampling_defaults: Mapping[str, Any] | None = None,
        model_path: str | None = None,
        **settings: Any,
    ) -> None:
        if model is not None and model_path is not None:
            raise InvalidRequest(
                "model and model_path are the same", value=model_path, hint="Give one."
            )
        model = model_path if model is None else model
        self.name = "engine"
        self.features = ENGINE_FEATURES
        self.sampling_defaults = dict(sampling_defaults or {})
        check_names(self.sampling_defaults, DEFAULT_NAMES, "sampling_defaults")
        try:
            from branchline.runtime import engine as runtime
            from branchline.runtime.programs.executor import Executor
        except ModuleNotFoundError as error:
            raise BackendError(
                f"the runtime cannot be loaded: there is no module {error.name!r}",
                hint="Install it: pip install 'branchline[runtime]'.",
            ) from error
        self._engine = runtime.Engine(model=model, **settings)
        self._executor = Executor(self._engine.core)
        self._closed = False

    # ---- programs

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """Start a program; see `ProgramBackend`."""
        if self._closed:
            raise BackendError("the engine is closed", hint="Make a new Engine.")
        return self._executor.open(program, sink)

    def stats(self) -> ExecutorStats:
        """Counts of the executor: programs, tokens tokenized, wakes."""
        return self._executor.stats()

    # ---- single requests, as the runtime's engine has them

    def generate(self, prompts: Any, sampling: Any = None, **options: Any) -> Any:
        """Continue one prompt or many; see `runtime.engine.Engine.generate`."""
        return self._engine.generate(prompts, sampling, **options)

    async def agenerate(
        self, prompt: str | Sequence[int], sampling: Any = None, **options: Any
    ) -> Any:
        """Like `generate` for one prompt, on the running event loop."""
        return await self._engine.agenerate(prompt, sampling, **options)

    def stream(
        self, prompt: str | Sequence[int], sampling: Any = None, **options: Any
    ) -> Iterator[Any]:
        """Like `generate`, piece by piece."""
        return self._engine.stream(prompt, sampling, **options)

    def astream(
        self, prompt: str | Sequence[int], sampling: Any = None, **options: Any
    ) -> AsyncIterator[Any]:
        """Like `stream`, on the running event loop."""
        return self._engine.astream(prompt, sampling, **options)

    def score(self, prompt: str | Sequence[int], choices: Sequence[Any], **options: Any) -> Any:
        """Log-probabilities of each choice's tokens after one prompt."""
        return self._engine.score(prompt, choices, **options)

    def abort(self, request_id: str) -> None:
        """End a request."""
        self._engine.abort(request_id)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that programs and requests may name."""
        return self._engine.adapters()

    def load_adapter(
        self, name: str, source: AdapterSource | PathLike[str], *, pin: bool = False
    ) -> AdapterInfo:
        """Load an adapter while others are served; see `runtime.engine.Engine.load_adapter`."""
        return self._engine.load_adapter(name, source, pin=pin)

    def unload_adapter(self, name: str, *, drain: bool = False) -> AdapterInfo:
        """Forget an adapter; see `runtime.engine.Engine.unload_adapter`."""
        return self._engine.unload_adapter(name, drain=drain)

    def flush_cache(self) -> None:
        """Forget all cached prefixes that nothing uses."""
        self._engine.flush_cache()

    def info(self) -> dict[str, Any]:
        """Model, settings and why they were chosen, counts."""
        return {"backend": self.name, **self._engine.info()}

    def close(self) -> None:
        """End all programs and free the model. May be called again."""
        if not self._closed:
            self._closed = True
            self._executor.close()
            self._engine.close()

    def shutdown(self) -> None:
        """`close`, under its name in SGLang."""
        self.close()


class Runtime(Engine):
    """`Engine` under the name and with the argument it has in SGLang's language."""

    def __init__(self, model_path: str, **settings: Any) -> None:
        super().__init__(model_path, **settings)
