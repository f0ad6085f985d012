"""Loading and unloading adapters, under vLLM's and SGLang's names; for admins.

An adapter is named by a path on the server's machine, or sent: as a form with the two files of
PEFT's format, or as SGLang sends tensors, in base64. Invariant: what is sent is bounded while it is
read; it is a file of safetensors or refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiohttp import BodyPartReader, web

from branchline.runtime.core.adapters import AdapterFiles, AdapterInfo, AdapterSource
from branchline.runtime.server.adapter_types import LoadBody, LoadTensorsBody, UnloadBody
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.keys import Access
from branchline.runtime.server.limits import check
from branchline.runtime.server.wire import json_response, read_body

T = TypeVar("T")

LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"
TENSORS = "/load_lora_adapter_from_tensors"
OPENAI_PATHS = (f"/v1{LOAD}", f"/v1{UNLOAD}")
SGLANG_PATHS = (LOAD, TENSORS, UNLOAD)

ACCESS = dict.fromkeys((*OPENAI_PATHS, *SGLANG_PATHS), Access.ADMIN)
OPENAI_BODIES: dict[str, type[Any]] = dict(zip(OPENAI_PATHS, (LoadBody, UnloadBody), strict=True))
SGLANG_BODIES: dict[str, type[Any]] = dict(
    zip(SGLANG_PATHS, (LoadBody, LoadTensorsBody, UnloadBody), strict=True)
)

_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "lora_name": {"type": "string"},
        "config": {**_FILE, "description": "adapter_config.json"},
        "weights": {**_FILE, "description": "adapter_model.safetensors"},
        "pinned": {"type": "boolean"},
        "load_inplace": {"type": "boolean"},
    },
    "required": ["lora_name", "config", "weights"],
    "additionalProperties": False,
}
"""The form that sends an adapter."""

MAX_CONFIG_BYTES, MAX_FIELD_BYTES = 1 << 20, 1 << 10
_CHUNK = 1 << 18
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


def openai_routes(context: ServerContext) -> list[web.RouteDef]:
    """Those that vLLM has."""
    family = _Loading(context)
    load, unload = OPENAI_PATHS
    return [web.post(load, family.load), web.post(unload, family.unload)]


def sglang_routes(context: ServerContext) -> list[web.RouteDef]:
    """Those that SGLang has."""
    family = _Loading(context)
    return [
        web.post(LOAD, family.load),
        web.post(TENSORS, family.load_tensors),
        web.post(UNLOAD, family.unload),
    ]


class _Wish(NamedTuple):
    name: str
    source: AdapterSource
    pin: bool
    replace: bool


class _Loading:
    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def load(self, request: web.Request) -> web.Response:
        """Load an adapter, from a folder or from the files of a form."""
        if request.content_type == "multipart/form-data":
            return await self._load(await self._form(request))
        body = await read_body(request, LoadBody, self._context.limits)
        return await self._load(
            _Wish(body.lora_name, body.lora_path, body.pinned, body.load_inplace)
        )

    async def load_tensors(self, request: web.Request) -> web.Response:
        """Load an adapter that is sent in base64."""
        body = await read_body(request, LoadTensorsBody, self._context.limits)
        try:
            weights = base64.b64decode(body.serialized_tensors, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(
                400,
                f"serialized_tensors is no base64: {error}",
                param="serialized_tensors",
                hint="Send a file of safetensors in base64.",
            ) from error
        most = self._context.limits.max_adapter_bytes
        check("max_adapter_bytes", "the size of the adapter", len(weights), most)
        files = AdapterFiles(config=msgspec.json.encode(body.config_dict), weights=weights)
        return await self._load(_Wish(body.lora_name, files, body.pinned, body.load_inplace))

    async def unload(self, request: web.Request) -> web.Response:
        """Forget an adapter."""
        body = await read_body(request, UnloadBody, self._context.limits)
        info = await self._context.adapters.unload(body.lora_name, drain=body.drain)
        return self._answer(f"{info.name} is unloaded", info)

    async def _load(self, wish: _Wish) -> web.Response:
        info = await self._context.adapters.load(
            wish.name, wish.source, pin=wish.pin, replace=wish.replace
        )
        return self._answer(f"{info.name} is loaded", info)

    def _answer(self, message: str, info: AdapterInfo) -> web.Response:
        """What both APIs' clients look at, and the adapter."""
        return json_response(
            {
                "success": True,
                "message": message,
                "error_message": "",
                "adapter": info,
                "loaded_adapters": {one.name: one.path for one in self._context.adapters.all()},
            }
        )

    # ---- forms

    async def _form(self, request: web.Request) -> _Wish:
        """The fields of a form: lora_name, config, weights, and perhaps pinned, load_inplace."""
        found: dict[str, bytes] = {}
        try:
            parts = await request.multipart()
            while (part := await self._waited(parts.next())) is not None:
                if not isinstance(part, BodyPartReader) or part.name is None:
                    raise Refused(400, "a part of the form has no name", hint=_FORM)
                if part.name in found:
                    raise Refused(400, f"the form has {part.name} twice", hint=_FORM)
                found[part.name] = await self._part(part, part.name)
        except ValueError as error:
            if isinstance(error, Refused):
                raise
            raise Refused(400, f"the form cannot be read: {error}", hint=_FORM) from error
        for name in FORM["required"]:
            if name not in found:
                raise Refused(400, f"the form has no {name}", param=name, hint=_FORM)
        files = AdapterFiles(config=found["config"], weights=found["weights"])
        return _Wish(
            found["lora_name"].decode("utf-8", "replace"),
            files,
            _switch(found, "pinned"),
            _switch(found, "load_inplace"),
        )

    async def _part(self, part: BodyPartReader, name: str) -> bytes:
        if name not in FORM["properties"]:
            raise Refused(400, f"unknown field {name!r}", param=name, hint=_FORM)
        sizes = {"config": MAX_CONFIG_BYTES, "weights": self._context.limits.max_adapter_bytes}
        most = sizes.get(name, MAX_FIELD_BYTES)
        data = bytearray()
        while chunk := await self._waited(part.read_chunk(_CHUNK)):
            data += chunk
            if len(data) > most:
                raise Refused(
                    413,
                    f"{name} is larger than this server takes",
                    value=most,
                    param=name,
                    hint="For weights, start the server with --limit max_adapter_bytes=….",
                )
        return bytes(data)

    async def _waited(self, read: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(read, self._context.limits.idle_timeout_s)
        except TimeoutError:
            raise Refused(408, "the form did not arrive in time") from None


_FORM = "Send lora_name, config (adapter_config.json) and weights (adapter_model.safetensors)."


def _switch(found: dict[str, bytes], name: str) -> bool:
    text = found.get(name, b"false").decode("utf-8", "replace").lower()
    if text not in _SWITCHES:
        raise Refused(400, f"{name} is a switch", value=text, param=name, hint="true or false.")
    return _SWITCHES[text]
