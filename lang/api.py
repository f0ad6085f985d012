"""What programs are made of: the expression constructors and the `function` decorator.

Everything here only builds values; nothing runs before a program does.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from branchline.lang.compat import modern_gen_options
from branchline.lang.constraints import checked_choices, lark, regex
from branchline.lang.errors import BranchlineError, InvalidRequest, UnsupportedFeature
from branchline.lang.expressions import Gen, Select
from branchline.lang.grammar import Grammar, Json, JsonSchema, schema_text
from branchline.lang.markers import Box, present, reject
from branchline.lang.program import Program
from branchline.lang.refusals import describe
from branchline.lang.sampling import GenOptions, OutputOptions, SamplingOptions, check_names
from branchline.lang.tools import ToolBox, toolbox
from branchline.lang.types import resolve
from branchline.runtime.core.sampling_params import SEED_RULE, seed_fits
from branchline.runtime.programs.protocol import SelectMethod

SELECT_METHODS: tuple[SelectMethod, ...] = (
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "total",
)


class AllGenOptions(GenOptions, total=False):
    """All keywords of `gen`."""

    regex: str | None
    json_schema: object
    grammar: Grammar | str | None
    choices: Iterable[str] | None
    choices_method: SelectMethod
    tools: object
    tool_choice: object
    parallel: bool


_GEN_NAMES = frozenset(AllGenOptions.__annotations__)
_GEN_KEPT = frozenset(GenOptions.__annotations__)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _locating(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Errors of an expression's constructor say which variable it was to be."""

    @functools.wraps(make)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return make(*args, **kwargs)
        except BranchlineError as error:
            name = str((args[0] if args else kwargs.get("name")) or "")
            error.located(variable="" if present(name) else name)
            raise

    return wrapped


@_locating
def gen(
    name: str | None = None,
    type: Any = None,
    *,
    append: bool = False,
    **options: Unpack[AllGenOptions],
) -> Gen | Select:
    """Generate, and call the result `name`.

    Args:
        name: variable; None = `_0`, `_1`, …
        type: a Python type, a JSON Schema (`dict`) or a constraint (`regex`, `choices`, `lark`,
            `ebnf`, `structural_tag`, `seq`, …); the value is an instance of it. `str`, numbers,
            `bool`, dates, `UUID`, `Literal` and `Enum` are plain text; all else is JSON.
        append: the variable is a list and this adds an item.
        options: how to sample (`max_tokens=128, min_tokens=0, n=1, stop=None, stop_token_ids=None,
            stop_regex=None, keep_stop=False, temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0,
            frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, logit_bias=None,
            seed=None, logprobs=None, ignore_eos=False`; `speculative=False`: no guessing ahead,
            which changes no output), a constraint instead of `type` (`regex=`, `json_schema=`,
            `grammar=`, or `choices=` and `choices_method=`, which is `select`),
            tools (`tools=`, `tool_choice="auto"`, `parallel=True`: as in `call`),
            what is done around it (`reasoning=None`: whether the model thinks first, None = where
            its template means it to, a str names the format; `heal=None`: whether the last token
            of the text before is tokenized anew with the output, None = for constrained outputs
            outside of chat turns), and how to run (`adapter=None, deadline_s=None, priority=0`).

    Raises:
        InvalidOption: a keyword that does not exist.
        InvalidRequest: more than one constraint.
        UnsupportedConstraint: a type that cannot be enforced; names it.
    """
    given: dict[str, Any]
    type, given = modern_gen_options(type, dict(options))
    check_names(given, _GEN_NAMES, "gen()")
    tools, tool_choice = given.pop("tools", None), given.pop("tool_choice", None)
    parallel = given.pop("parallel", None)
    if tools is not None:
        box = toolbox(tools, tool_choice or "auto", parallel is not False)
        return _gen_with_tools(name, type, box, given, append=append)
    for word, value in (("tool_choice", tool_choice), ("parallel", parallel)):
        if value is not None and value != "auto":
            raise InvalidRequest(f"{word} without tools", value=value, hint="Give tools=[...] too.")
    type = _one_constraint(type, given)
    if name is not None:
        name = reject(name, "a variable name")
    choices = given.pop("choices", None)
    method = given.pop("choices_method", None)
    if choices is not None:
        if type is not None:
            raise _two_constraints("choices", type)
        return _select(name, choices, method, given, append=append)
    if method is not None:
        raise InvalidRequest(
            "choices_method without choices", value=method, hint="Give choices=[...] too."
        )
    if type is not None:
        resolve(type)
    kept = {key: _frozen(value) for key, value in given.items() if key in _GEN_KEPT}
    boxed = None if type is None or type is str else Box(type)
    return Gen(name=name, type=boxed, options=kept, append=append)


@_locating
def call(
    name: str | None = None,
    tools: object = None,
    *,
    choice: object = "auto",
    parallel: bool = True,
    append: bool = False,
    **options: Unpack[GenOptions],
) -> Gen:
    """Generate text or calls of tools; the value is a `Reply` with `.text` and `.calls`.

    The output is constrained to the way the model writes calls, with valid arguments. Tools that
    the model was not told of yet are declared: see the documentation for where.

    Args:
        name: variable; None = `_0`, `_1`, …
        tools: `@bl.tool` functions, plain functions, or dicts in the form of OpenAI's API.
        choice: "auto", "required" (at least one call), "none", or a tool (by name or itself).
        parallel: more than one call is allowed.
        append, options: as in `gen`, but for `max_tokens=512`.

    Raises:
        InvalidRequest: no tools, two of one name, or a choice that none of them has.
    """
    check_names(options, _GEN_KEPT, "call()")
    box = toolbox(() if tools is None else tools, choice, parallel)
    return _gen_with_tools(name, None, box, dict(options), append=append)


def _gen_with_tools(
    name: str | None, type: Any, box: ToolBox, given: dict[str, Any], *, append: bool
) -> Gen:
    for word in (*_CONSTRAINTS, "choices"):
        if given.get(word) is not None:
            raise _two_constraints(word, "tools")
    if type is not None and type is not str:
        raise _two_constraints("tools", type)
    if name is not None:
        name = reject(name, "a variable name")
    kept = {key: _frozen(value) for key, value in given.items() if key in _GEN_KEPT}
    return Gen(name=name, options=kept, append=append, tools=Box(box))


def _one_constraint(type: Any, given: dict[str, Any]) -> Any:
    """What constrains a `gen`, as something `type` takes; takes the keywords out of `given`."""
    found = [] if type is None else [type]
    for name, read in _CONSTRAINTS.items():
        value = given.pop(name, None)
        if value is None:
            continue
        if found and found != [str]:
            raise _two_constraints(name, found[0])
        found = [read(value)]
    wanted = found[0] if found else None
    return JsonSchema(schema_text(wanted)) if isinstance(wanted, (dict, bool)) else wanted


def _grammar(value: object) -> object:
    return value if isinstance(value, Grammar) else lark(value)  # type: ignore[arg-type]


_CONSTRAINTS: dict[str, Callable[[Any], object]] = {
    "regex": regex,
    "json_schema": lambda schema: (
        schema
        if isinstance(schema, (builtins.type, JsonSchema, Json))
        else JsonSchema(schema_text(schema))
    ),
    "grammar": _grammar,
}


def _two_constraints(name: str, other: object) -> InvalidRequest:
    return InvalidRequest(
        f"a gen takes one constraint; {name} and another one were given",
        value=describe(other),
        hint="Drop one of them.",
    )


@_locating
def select(
    name: str | None = None,
    choices: Iterable[object] | None = None,
    *,
    method: SelectMethod | None = None,
    baseline: str | None = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    append: bool = False,
    choices_method: SelectMethod | None = None,
    seed: int | None = None,
    deadline_s: float | None = None,
    priority: int | None = None,
    adapter: str | None = None,
) -> Select:
    """Score every choice in the model's own distribution and take the best.

    Args:
        choices: texts, and anything that `gen` takes as a type: such a choice stands for the text
            that greedy decoding under it finds, and the value is an instance of it.
        baseline: a prompt without content ("Question: N/A\\nAnswer:"): each choice's score after it
            is taken off, so that what the model would say anyway counts for nothing.
        max_tokens: of a choice that is a type.
        method: how sums over tokens become comparable; `token_length_normalized` (default),
            `greedy_token_selection`, `unconditional_likelihood_normalized` or `total`.
        temperature: above 0, draw from the normalised scores instead of taking the best.
        choices_method: another name of `method`.

    Raises `InvalidRequest` for empty, repeated or non-text choices, or an unknown method.
    """
    options = {
        "temperature": temperature,
        "seed": seed,
        "deadline_s": deadline_s,
        "priority": priority,
        "adapter": adapter,
        "baseline": baseline,
        "max_tokens": max_tokens,
    }
    if choices is None:
        raise InvalidRequest("select without choices", value="None", hint="Give choices=[...].")
    return _select(name, choices, method or choices_method, options, append=append)


def _select(
    name: str | None,
    choices: Iterable[object],
    method: SelectMethod | None,
    options: dict[str, Any],
    *,
    append: bool,
) -> Select:
    method = method or "token_length_normalized"
    if method not in SELECT_METHODS:
        raise InvalidRequest(
            "unknown select method", value=method, hint=f"Use one of {', '.join(SELECT_METHODS)}."
        )
    temperature = options.get("temperature") or 0.0
    if not isinstance(temperature, (int, float)) or not 0.0 <= temperature <= 100.0:
        raise InvalidRequest(
            "temperature is out of range", value=temperature, hint="Use between 0 and 100."
        )
    seed = options.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int | None) or not seed_fits(seed):
        raise InvalidRequest("seed is out of range", value=seed, hint=f"Use {SEED_RULE}.")
    kept = ("seed", "deadline_s", "priority", "adapter")
    texts, types = _branches(choices)
    limit, baseline = options.get("max_tokens"), options.get("baseline")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InvalidRequest("max_tokens is out of range", value=limit, hint="Use at least 1.")
    if not isinstance(baseline, str | None):
        raise InvalidRequest("a baseline is a text", value=baseline, hint="Give a str.")
    return Select(
        name=name,
        choices=texts,
        types=types,
        max_tokens=128 if limit is None else limit,
        baseline=None if baseline is None else reject(baseline, "a baseline"),
        method=method,
        temperature=float(temperature),
        options={key: options[key] for key in kept if options.get(key) is not None},
        append=append,
    )


def _branches(choices: Iterable[object]) -> tuple[tuple[str, ...], tuple[Box | None, ...]]:
    """Choices as texts, and the types of those that are none."""
    if isinstance(choices, str):
        return checked_choices(choices), ()
    items = list(choices)
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) == len(items):
        return checked_choices(texts), ()
    types = [None if isinstance(item, str) else Box(_readable(item)) for item in items]
    checked = iter(checked_choices(texts) if texts else ())
    names = [next(checked) if box is None else resolve(box.value).name for box in types]
    return tuple(names), tuple(types)


def _readable(item: object) -> object:
    """A choice that is a type; raises as `gen` for what is none, and for captures."""
    if item is None or isinstance(item, (int, float, bytes, list, tuple)):
        raise InvalidRequest(
            f"a choice is a {builtins.type(item).__name__}",
            value=item,
            hint="Choices are texts, types and constraints.",
        )
    kind = resolve(JsonSchema(schema_text(item)) if isinstance(item, dict) else item)
    if kind.constraint is None:
        raise InvalidRequest(
            "a choice of select is any text",
            value=describe(item),
            hint="Give texts, or types and constraints other than str.",
        )
    if kind.captures:
        raise UnsupportedFeature(
            "select has no captures",
            value=", ".join(kind.captures),
            hint="Leave capture(...) out of its choices.",
        )
    return item


def _frozen(value: object) -> object:
    """The caller may go on changing its list."""
    if isinstance(value, (list, tuple, set)):
        return list(value)
    return dict(value) if isinstance(value, dict) else value


class FunctionOptions(SamplingOptions, OutputOptions, total=False):
    """Keywords of `function`."""

    adapter: str | None
    num_api_spec_tokens: int | None


@overload
def function(func: Callable[..., Any], /) -> Program: ...


@overload
def function(**defaults: Unpack[FunctionOptions]) -> Callable[[Callable[..., Any]], Program]: ...


def function(
    func: Callable[..., Any] | None = None, /, **defaults: Unpack[FunctionOptions]
) -> Program | Callable[[Callable[..., Any]], Program]:
    """Make a program of a `def` or `async def` whose first parameter is the state.

    Args:
        defaults: sampling defaults of the program's gens, weaker than what a `gen` call or
            `run(...)` says. `num_api_spec_tokens` is accepted and has no effect.

    Raises:
        InvalidOption: a keyword that does not exist.
        ProgramError: the function cannot be a program.
    """
    given = dict(defaults)
    given.pop("num_api_spec_tokens", None)
    check_names(given, FunctionOptions.__annotations__, "function()")

    def decorate(func: Callable[..., Any]) -> Program:
        return Program(func, given)

    return decorate if func is None else decorate(func)
