"""The adapters of the served model: their names beside the model's, loading and unloading them.

Invariants: a name means one thing, so no adapter is called as the model is; what is loaded under a
name that is in use replaces it only where the client says so; a path is read only inside of a
folder that the operator has named, wherever symbolic links lead. Knows no routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from branchline.runtime.core.adapters import AdapterInfo, AdapterSource, check_adapter_name
from branchline.runtime.core.protocols import AdapterPort, EnginePort
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import InvalidRequest, UnsupportedFeature
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.limits import Limits, check

MOST_NAMED = 16
"""Names that an error lists at most."""


class Served(NamedTuple):
    """What a request's `model` means.

    Attributes:
        name: to answer with.
        adapter: that computes the answer; "" = the model itself.
    """

    name: str
    adapter: str = ""


class Adapters:
    """See module.

    Args:
        port: of the engine; one that takes no adapters has none.
        client: waits for its answers.
        model_names: of the model.
        folders: whose content may be loaded by its path.

    Raises:
        InvalidRequest: an adapter that is there already has the model's name, or a folder is none.
    """

    def __init__(
        self,
        port: EnginePort,
        client: EngineClient,
        model_names: tuple[str, ...],
        limits: Limits,
        folders: Sequence[str] = (),
    ) -> None:
        self._port = port if isinstance(port, AdapterPort) else None
        self._client = client
        self._model_names = model_names
        self._limits = limits
        self._folders = [_folder(folder) for folder in folders]
        self._loading: dict[str, asyncio.Task[AdapterInfo]] = {}
        for info in self.all():
            self._check_free(info.name)

    def all(self) -> list[AdapterInfo]:
        """Those that requests may name."""
        return [] if self._port is None else self._port.adapters()

    def find(self, name: str) -> AdapterInfo | None:
        """The adapter of this name, if there is one."""
        return None if self._port is None else self._port.adapter(name)

    # ---- which one a request means

    def choose(self, model: str | None, adapter: str | None = None) -> Served:
        """What is meant by a request's `model`, and its `lora_path` where it has one.

        Args:
            model: the model's name or an adapter's, or both as `model:adapter`; None, "" and
                "default" are the model.
            adapter: name of an adapter; None = as `model` has it, "" = none.

        Raises:
            Refused: 404, there is none of this name; 400, the two name different adapters.
        """
        served = self._named(model)
        if adapter is None or adapter == served.adapter:
            return served
        if served.adapter:
            raise Refused(
                400,
                "model and lora_path name different adapters",
                value=f"{served.adapter} and {adapter or 'none'}",
                param="lora_path",
                hint="Send one of them.",
            )
        if self.find(adapter) is None:
            raise self._unknown(adapter, "lora_path")
        return served._replace(adapter=adapter)

    def _named(self, model: str | None) -> Served:
        names = self._model_names
        if model in (None, "", "default"):
            return Served(names[0])
        if model in names:
            return Served(model)
        if self.find(model) is not None:
            return Served(model, model)
        for name in names:
            adapter = model.removeprefix(f"{name}:")
            if adapter != model and self.find(adapter) is not None:
                return Served(model, adapter)
        raise self._unknown(model, "model")

    def _unknown(self, name: str, param: str) -> Refused:
        adapters = [info.name for info in self.all()]
        known = adapters if param == "lora_path" else [*self._model_names, *adapters]
        more = len(known) - MOST_NAMED
        shown = ", ".join(known[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        return Refused(
            404,
            "no adapter of this name is loaded"
            if param == "lora_path"
            else "the model does not exist here",
            value=name,
            param=param,
            code="model_not_found",
            hint=f"This server has {shown or 'none'}.",
        )

    # ---- loading

    async def load(
        self, name: str, source: AdapterSource, *, pin: bool = False, replace: bool = False
    ) -> AdapterInfo:
        """Load an adapter; answers when requests may name it. A client that does not wait for that
        does not stop it.

        Args:
            source: a path, which must lie in one of the folders, or the files.
            replace: load it as the next version where the name is in use.

        Raises:
            Refused: 403, the path is not allowed; 409, the name is in use.
            InvalidRequest: no adapter can be called so, or there are too many.
            AdapterError: what is wrong with it; nothing has changed then.
        """
        port = self._taking()
        check_adapter_name(name)
        self._check_free(name)
        if name in self._loading or (not replace and self.find(name) is not None):
            loaded = name not in self._loading
            raise Refused(
                409,
                "an adapter of this name is loaded" if loaded else "it is being loaded",
                value=name,
                param="lora_name",
                hint="Send load_inplace: true to replace it." if loaded else "Wait for the answer.",
            )
        names = {name, *self._loading, *(info.name for info in self.all())}
        check("max_adapters", "the number of adapters", len(names), self._limits.max_adapters)
        task = asyncio.create_task(self._load(port, name, source, pin))
        self._loading[name] = task
        task.add_done_callback(lambda done: self._loaded(name, done))
        return await asyncio.shield(task)

    async def _load(
        self, port: AdapterPort, name: str, source: AdapterSource, pin: bool
    ) -> AdapterInfo:
        found = source
        if isinstance(source, str):
            found = await asyncio.to_thread(self._allowed, source)
        return await self._client.ask(lambda done: port.load_adapter(name, found, done, pin=pin))

    def _loaded(self, name: str, task: asyncio.Task[AdapterInfo]) -> None:
        del self._loading[name]
        if not task.cancelled():
            task.exception()  # its client may have left

    async def unload(self, name: str, *, drain: bool = False) -> AdapterInfo:
        """Forget an adapter; the answer is what it was.

        Args:
            drain: wait for the requests that use it, and take no more.

        Raises:
            AdapterNotFound: there is none of this name.
            AdapterInUse: requests use it, and `drain` is False.
        """
        port = self._taking()
        return await self._client.ask(lambda done: port.unload_adapter(name, done, drain=drain))

    def _taking(self) -> AdapterPort:
        if self._port is None:
            raise UnsupportedFeature(
                "this server's engine takes no adapters", hint="Use another server."
            )
        return self._port

    def _check_free(self, name: str) -> None:
        if name in self._model_names:
            raise InvalidRequest(
                "an adapter has the name of the model", value=name, hint="Call it otherwise."
            )

    def _allowed(self, path: str) -> str:
        """The folder that `path` names, if it may be read. A relative path is looked for in each of
        the folders."""
        if not self._folders:
            raise Refused(
                403,
                "this server loads no adapters by path",
                value=path,
                param="lora_path",
                hint="Send the files, or start the server with --adapter-dirs.",
            )
        try:
            inside = [found for folder in self._folders if (found := _below(folder, path))]
            best = next((found for found in inside if found.is_dir()), None)
        except (OSError, ValueError) as error:  # too long, a loop of links, a null character
            raise Refused(
                400,
                f"the path cannot be read: {type(error).__name__}",
                value=path,
                param="lora_path",
                hint="Check it.",
            ) from error
        if inside and best is None:
            raise Refused(
                400,
                "no folder of this name may be loaded from",
                value=path,
                param="lora_path",
                hint="Put it into a folder of --adapter-dirs, or send its files.",
            )
        if best is None:
            raise Refused(
                403,
                "the path is outside of the folders that may be loaded from",
                value=path,
                param="lora_path",
                hint="Put the adapter into one of them, or send its files.",
            )
        return str(best)


def _below(folder: Path, path: str) -> Path | None:
    """What `path` names, links followed, if that is below `folder`."""
    found = (folder / path).resolve()
    return found if found != folder and found.is_relative_to(folder) else None


def _folder(path: str) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_dir():
        raise InvalidRequest(
            "adapter_dirs names something that is no folder",
            value=path,
            hint="Make it, or leave it out.",
        )
    return found
