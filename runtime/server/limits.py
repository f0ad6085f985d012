"""Every bound on what a client may ask for, in one table; one field is one `--limit` of the server.

Invariant: a value beyond a bound is refused before any of it is worked on, by an error that names
the bound, what was found and the most that is allowed. Sizes of one constraint beyond those here
are bounded where it is compiled (`runtime.grammar.limits`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from branchline.runtime.config.sections import setting
from branchline.runtime.core.sampling_params import MAX_LOGPROBS, MAX_N, MAX_STOPS
from branchline.runtime.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most of everything. A field `x` is set by `--limit x=…`."""

    max_body_bytes: int = setting(8 * 1024 * 1024, "bytes of a request's body")
    max_open_requests: int = setting(1024, "requests worked on at once; more get 429")
    max_prompt_tokens: int | None = setting(
        None, "tokens of one prompt; None = as many as the context holds"
    )
    max_prompts: int = setting(1024, "prompts of one request")
    max_messages: int = setting(4096, "messages of one conversation")
    max_tools: int = setting(128, "tools of one request")
    max_n: int = setting(MAX_N, "outputs for one prompt")
    max_sequences: int = setting(4096, "outputs of one request: prompts times n")
    max_stops: int = setting(MAX_STOPS, "stop strings, or stop token ids")
    max_logprobs: int = setting(MAX_LOGPROBS, "alternatives for each token")
    max_logit_bias: int = setting(1024, "entries of logit_bias")
    max_schema_bytes: int = setting(256 * 1024, "bytes of one constraint")
    max_schema_depth: int = setting(64, "containers within containers of a JSON schema")
    max_adapters: int = setting(4096, "adapters that may be loaded")
    max_adapter_bytes: int = setting(
        512 * 1024 * 1024, "bytes of an adapter that is sent to be loaded"
    )
    max_adapter_requests: int | None = setting(
        None, "requests of one adapter worked on at once, of programs too; more wait"
    )
    max_adapter_waiting: int = setting(
        256, "requests of one adapter that wait for that; more get 429"
    )
    idle_timeout_s: float = setting(
        120.0, "seconds a client may take to send its body, or to take the next part of an answer"
    )
    total_timeout_s: float = setting(3600.0, "seconds from a request to the end of its answer")
    template_timeout_s: float = setting(2.0, "seconds the chat template may take")


def check(name: str, what: str, found: int, most: int | None) -> None:
    """Raise `InvalidRequest` when `found` is above `most`.

    Args:
        name: field of `Limits`.
        what: of the request, as its client calls it.
    """
    if most is not None and found > most:
        raise InvalidRequest(
            f"{what} is beyond the server's limit",
            value=found,
            hint=f"Use at most {most}, or start the server with --limit {name}=….",
        )


def check_depth(what: str, document: object, most: int) -> None:
    """Raise `InvalidRequest` when containers of `document` are nested more than `most` deep."""
    level, depth = _containers([document]), 0
    while level:
        depth += 1
        check("max_schema_depth", f"the depth of {what}", depth, most)
        level = [child for item in level for child in _containers(_values(item))]


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
