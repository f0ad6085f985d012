"""Names of SGLang's language that this one spells otherwise, for programs written for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from branchline.lang.errors import InvalidRequest, UnsupportedFeature
from branchline.lang.expressions import Concat, Expression, Gen, RoleTurn, Select, concat

if TYPE_CHECKING:
    from branchline.runtime.programs.protocol import ProgramBackend, SelectMethod

token_length_normalized: Final[SelectMethod] = "token_length_normalized"
greedy_token_selection: Final[SelectMethod] = "greedy_token_selection"
unconditional_likelihood_normalized: Final[SelectMethod] = "unconditional_likelihood_normalized"


_DTYPES = {"int": int, "float": float, "str": str, "bool": bool}


def gen_int(name: str | None = None, max_tokens: int | None = None, **options: Any) -> Gen | Select:
    """`gen(name, int, …)`."""
    from branchline.lang.api import gen

    return gen(name, max_tokens, dtype=int, **options)  # type: ignore[call-arg]


def gen_string(
    name: str | None = None, max_tokens: int | None = None, **options: Any
) -> Gen | Select:
    """`gen(name, str, …)`."""
    from branchline.lang.api import gen

    return gen(name, max_tokens, dtype=str, **options)  # type: ignore[call-arg]


def separate_reasoning(
    expr: Expression | str | list[Any] | None = None, model_type: str | None = None
) -> Concat:
    """Every `gen` in `expr` with `reasoning=` on; what is thought before the answer of `x` becomes
    the variable `x_reasoning_content`.

    Args:
        model_type: the name of a format or model; None = as the model's template has it.
    """
    return concat([_with_reasoning(part, model_type or True) for part in concat([expr]).parts])


def _with_reasoning(node: Expression, format: str | bool) -> Expression:
    if isinstance(node, Gen):
        options = {**node.options, "reasoning": format}
        return msgspec.structs.replace(node, options=options, keep_reasoning=True)
    if isinstance(node, RoleTurn):
        return msgspec.structs.replace(node, body=_with_reasoning(node.body, format))
    if isinstance(node, Concat):
        return concat([_with_reasoning(part, format) for part in node.parts])
    return node


def flush_cache(backend: ProgramBackend | None = None) -> None:
    """Empty the prefix cache of `backend`, or of the current one."""
    from branchline.lang.backends.base import resolve_backend

    resolve_backend(backend).flush_cache()


def get_server_info(backend: ProgramBackend | None = None) -> dict[str, Any]:
    """`info()` of `backend`, or of the current one."""
    from branchline.lang.backends.base import resolve_backend

    return resolve_backend(backend).info()


def modern_gen_options(type: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`gen` keywords with the old names replaced: `dtype`, `return_logprob`, `top_logprobs_num`.

    A number in the place of the type is `max_tokens`, which stood there.

    Raises `UnsupportedFeature` for an old keyword that asks for something else.
    """
    if isinstance(type, int) and not isinstance(type, bool):
        if "max_tokens" in options:
            raise InvalidRequest("max_tokens is given twice", value=type, hint="Give it once.")
        options["max_tokens"], type = type, None
    if "dtype" in options:
        dtype = _named_type(options.pop("dtype"))
        if type is not None and dtype is not None:
            raise InvalidRequest("type and dtype are the same", value=dtype, hint="Give one.")
        type = dtype if dtype is not None else type
    _modern_logprobs(options)
    return type, options


def _named_type(dtype: Any) -> Any:
    if not isinstance(dtype, str):
        return dtype
    if dtype not in _DTYPES:
        raise InvalidRequest("unknown dtype", value=dtype, hint=f"Use one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def modern_run_options(given: Mapping[str, Any], parameters: Collection[str]) -> dict[str, Any]:
    """Keywords of `run` with the old names replaced; those in `parameters` are the function's.

    `use_thread` has no effect: no program needs a thread.

    Raises `InvalidRequest` for two names of one option, `UnsupportedFeature` as
    `modern_gen_options`.
    """
    old = {name: value for name, value in given.items() if name not in parameters}
    if _OLD_RUN_NAMES.isdisjoint(old):
        return dict(given)
    _modern_logprobs(old)
    old.pop("use_thread", None)
    for name, modern in (("max_new_tokens", "max_tokens"), ("min_new_tokens", "min_tokens")):
        if name not in old:
            continue
        value = old.pop(name)
        if modern in old:
            raise InvalidRequest(f"{name} and {modern} are the same", value=value, hint="Give one.")
        old[modern] = value
    return {name: value for name, value in given.items() if name in parameters} | old


_OLD_LOGPROBS = (
    "return_logprob",
    "top_logprobs_num",
    "return_text_in_logprobs",
    "logprob_start_len",
)
_OLD_RUN_NAMES = frozenset({*_OLD_LOGPROBS, "use_thread", "max_new_tokens", "min_new_tokens"})


def _modern_logprobs(options: dict[str, Any]) -> None:
    """Put `logprobs` in the place of the old options. Texts of tokens are not at hand here, so
    `return_text_in_logprobs` changes nothing: entries have None in their place.
    """
    wanted, top, _, start = (options.pop(name, None) for name in _OLD_LOGPROBS)
    if (wanted or top) and options.get("logprobs") is None:
        options["logprobs"] = top or 0
    if start is not None and start >= 0:
        raise UnsupportedFeature("a program has no log-probabilities of prompts", hint="Drop it.")
