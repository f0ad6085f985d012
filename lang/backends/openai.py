"""Any OpenAI-compatible server as a backend: programs run in this process, their requests there.

The same executor as everywhere runs the programs; each value node is one request (a branch sends
its whole text again, which the server may find in its cache). What a server cannot do is said
before anything is sent.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from branchline.lang.backends.base import Backend
from branchline.lang.backends.loop_thread import LoopThread
from branchline.lang.backends.openai_http import Json, OpenAIClient
from branchline.lang.backends.openai_port import OpenAIPort
from branchline.lang.errors import BackendError, InvalidRequest
from branchline.lang.sampling import DEFAULT_NAMES, check_names
from branchline.runtime.programs.executor import Executor

if TYPE_CHECKING:
    from branchline.runtime.programs.protocol import OpenProgram, Session, Sink

ServerKind = Literal["auto", "openai", "plain", "branchline", "vllm", "sglang"]
URL = "https://api.openai.com/v1"
PLAIN = frozenset({"roles", "fork", "json_schema", "logprobs", "seed", "logit_bias"})
MORE = frozenset(
    {
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "regex",
        "ebnf",
    }
)
FEATURES: dict[str, frozenset[str]] = {
    "openai": PLAIN,
    "plain": PLAIN,
    "sglang": PLAIN | MORE | {"stop_regex", "keep_stop", "adapter"},
    "vllm": PLAIN | MORE | {"choices", "select", "keep_stop", "adapter"},
    "branchline": PLAIN
    | MORE
    | {"choices", "select", "stop_regex", "keep_stop", "lark", "structural_tag", "adapter"},
}


class OpenAI(Backend):
    """Programs on an OpenAI-compatible server.

    Turns are sent as chat messages, text without turns as a completion. Token ids are not known,
    so `tokens()` is not supported and log-probabilities have the id -1. An adapter is one that the
    server has under this name; on vLLM, SGLang and branchline servers.

    Args:
        model: its name on the server.
        base_url: with the version, `http://host:port/v1`; None = OpenAI's own.
        api_key: None = the environment's OPENAI_API_KEY, for OpenAI's own server alone.
        server: what the server is, for fields that only some have; "auto" asks it once, when the
            first program runs.
        max_retries: new tries of a request after 429, 5xx or a broken connection.
        timeout_s: seconds without a byte after which the server counts as gone.
        sampling_defaults: weakest layer of sampling options of programs that run here.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        server: ServerKind = "auto",
        max_retries: int = 4,
        timeout_s: float = 600.0,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        url = _checked(base_url)
        if server != "auto" and server not in FEATURES:
            hint = f"Use auto, {', '.join(FEATURES)}."
            raise InvalidRequest("unknown kind of server", value=server, hint=hint)
        if not isinstance(max_retries, int) or max_retries < 0:
            raise InvalidRequest(
                "max_retries is negative", value=max_retries, hint="Use 0 or more."
            )
        own = urlsplit(url).hostname == urlsplit(URL).hostname
        if api_key is None and own:
            api_key = os.environ.get("OPENAI_API_KEY")
        self.name = "openai"
        self.sampling_defaults = dict(sampling_defaults or {})
        check_names(self.sampling_defaults, DEFAULT_NAMES, "sampling_defaults")
        self._thread = LoopThread("branchline-openai")
        self._client = OpenAIClient(url, api_key, max_retries=max_retries, timeout_s=timeout_s)
        self._thread.on_stop = self._client.close
        self._port = OpenAIPort(model, self._client, self._thread)
        self._executor = Executor(self._port)
        self._known = server != "auto" or own
        self._asking = threading.Lock()
        self._use(server if server != "auto" else "openai" if own else "plain")
        self._close = weakref.finalize(self, _close, self._executor, self._thread, wait=False)
        self._close.atexit = False  # `LoopThread` ends in order then

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """Start a program; see `ProgramBackend`. The first one asks what the server is."""
        if not self._close.alive:
            raise BackendError("the backend is closed", hint="Make a new one.")
        if not self._known:
            with self._asking:
                if not self._known:
                    self._use(_kind_of(self._thread.run(self._client.get("/models"))))
                    self._known = True
        return self._executor.open(program, sink)

    def flush_cache(self) -> None:
        """What the server caches is its own affair."""

    def info(self) -> dict[str, Any]:
        """What this is."""
        return {"backend": self.name, **self._port.info()}

    def close(self) -> None:
        """End all programs and connections. May be called again."""
        if self._close.detach() is not None:
            _close(self._executor, self._thread, wait=True)

    def _use(self, server: str) -> None:
        self._port.server = server
        self.features = FEATURES[server]


def _close(executor: Executor, thread: LoopThread, *, wait: bool) -> None:
    with suppress(BackendError):
        executor.close()
    thread.stop(wait=wait)


def _checked(base_url: str | None) -> str:
    if base_url is None:
        return URL
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        hint = "Write base_url='http://host:port/v1'."
        raise InvalidRequest("not the URL of a server", value=base_url, hint=hint)
    return base_url.rstrip("/")


def _kind_of(models: Json | None) -> str:
    """Who says it owns the models; a server that does not say is a plain one."""
    cards = (models or {}).get("data") or [{}]
    owner = cards[0].get("owned_by") if isinstance(cards[0], dict) else None
    return owner if owner in FEATURES else "plain"
