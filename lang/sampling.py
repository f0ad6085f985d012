"""From keywords to `SamplingParams`: which options exist, who wins, and what is refused.

Order: the `gen` call, then `run(...)`'s keywords, then `@function(...)`'s, then the backend's.
Only options that were given are kept, so a default never hides a choice made further out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec

from branchline.lang.errors import InvalidOption, InvalidRequest
from branchline.lang.markers import present, reject, stand_in
from branchline.runtime.core.bounds import MAX_PRIORITY
from branchline.runtime.core.sampling_params import Constraint, SamplingParams


class SamplingOptions(TypedDict, total=False):
    """How to sample. Meaning and limits of each: `SamplingParams`."""

    max_tokens: int | None
    min_tokens: int
    n: int
    stop: str | Iterable[str] | None
    stop_token_ids: Iterable[int] | None
    stop_regex: str | None
    keep_stop: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    logprobs: int | None
    ignore_eos: bool
    speculative: bool | None


class RequestOptions(TypedDict, total=False):
    """How one expression runs: adapter, seconds from the moment it can run, scheduling priority."""

    adapter: str | None
    deadline_s: float | None
    priority: int


class OutputOptions(TypedDict, total=False):
    """What is done around an output; see `protocol.Generate`."""

    reasoning: bool | str | None
    heal: bool | None


class GenOptions(SamplingOptions, OutputOptions, RequestOptions, total=False):
    """Keywords of `gen` beside `name`, `type` and the constraints."""


SAMPLING_NAMES = frozenset(SamplingOptions.__annotations__)
REQUEST_NAMES = frozenset(RequestOptions.__annotations__)
OUTPUT_NAMES = frozenset(OutputOptions.__annotations__)
DEFAULT_NAMES = SAMPLING_NAMES | OUTPUT_NAMES
"""Options that a program, a run or a backend may have defaults for."""

Options = Mapping[str, Any]
_Key = TypeVar("_Key", bound=str)


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `InvalidOption` for the first keyword that `where` does not have."""
    known = frozenset(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}."
            raise InvalidOption(f"{where} has no option {name!r}", value=name, hint=hint)


def build(layers: Iterable[Options], constraint: Constraint | None) -> SamplingParams:
    """Merge option layers, the weakest first, and validate.

    Raises `InvalidRequest` naming the first value that is of the wrong type or out of range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update((name, value) for name, value in layer.items() if name in SAMPLING_NAMES)
    if stand_in.get() is not None:
        merged = {name: value for name, value in merged.items() if not _unknown(name, value)}
    for name in ("stop", "stop_token_ids"):
        if name in merged:
            merged[name] = _as_tuple(merged[name])
    if isinstance(merged.get("stop"), tuple):
        merged["stop"] = tuple(
            reject(text, "a stop string") if isinstance(text, str) else text
            for text in merged["stop"]
        )
    try:
        params = msgspec.convert(merged, SamplingParams)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`").split("[")[0]
        raise InvalidRequest(
            f"{name or 'an option'} has a value of the wrong type: {error}",
            value=merged.get(name),
            hint="See the options of gen().",
        ) from error
    if constraint is not None:
        params = msgspec.structs.replace(params, constraint=constraint)
    return params.validate()


def output_options(layers: Iterable[Options]) -> dict[str, Any]:
    """The merged `reasoning` and `heal`.

    Raises `InvalidRequest` for one of the wrong type.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update((name, value) for name, value in layer.items() if name in OUTPUT_NAMES)
    for name, value in merged.items():
        text = name == "reasoning" and isinstance(value, str)
        if not (value is None or isinstance(value, bool) or text):
            raise InvalidRequest(
                f"{name} has a value of the wrong type",
                value=value,
                hint="Use True, False or None.",
            )
    return merged


_HOW = {
    "adapter": "Give the name of an adapter, or '' for the base model.",
    "deadline_s": "Use a number of seconds above 0.",
    "priority": f"Use a whole number between {-MAX_PRIORITY} and {MAX_PRIORITY}.",
}


class _HowToRun(msgspec.Struct):
    """Types and bounds of `RequestOptions`."""

    adapter: str = ""
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 1.0
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0


def request_options(layers: Iterable[Options]) -> dict[str, Any]:
    """The merged adapter, deadline and priority, as far as any are given.

    An adapter "" is given: it names the base model, over an adapter of a weaker layer.

    Raises `InvalidRequest` for one of the wrong type or out of range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(
            (name, value)
            for name, value in layer.items()
            if name in REQUEST_NAMES and value is not None
        )
    if stand_in.get() is not None:
        merged = {name: value for name, value in merged.items() if not _unknown(name, value)}
    try:
        msgspec.convert(merged, _HowToRun)
    except msgspec.ValidationError as error:
        what, _, name = str(error).rstrip("`").rpartition(" - at `$.")
        raise InvalidRequest(
            f"{name} cannot be used: {what}",
            value=merged[name],
            hint=_HOW[name],
        ) from error
    return merged


OPTIONAL = ("logprobs", "seed", "top_k", "min_p", "logit_bias", "repetition_penalty", "min_tokens",
            "stop_token_ids", "stop_regex", "keep_stop", "ignore_eos")  # fmt: skip
"""Options that a backend may lack; the option's name is the feature's."""


def features_of(params: SamplingParams) -> list[str]:
    """Features of `ProgramBackend` that these options need."""
    return [name for name in OPTIONAL if getattr(params, name) != getattr(_DEFAULTS, name)]


_DEFAULTS = SamplingParams()


def _unknown(name: str, value: object) -> bool:
    """A traced program gives a number that is not known yet; asking for it marks the node."""
    if isinstance(value, str) and name not in ("stop", "stop_regex") and present(value):
        reject(value, name)
        return True
    return False


def _as_tuple(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, (str, int)):
        return (value,)
    if isinstance(value, Iterable):
        return tuple(value)
    return value
