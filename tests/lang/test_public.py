"""The package's face: what it exports, what importing it costs, which functions can be programs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import InvalidOption, ProgramError

BLOCKED = """
import sys
for name in ("torch", "transformers", "numpy", "tokenizers", "gguf", "llguidance"):
    sys.modules[name] = None
"""


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_language_runs_without_the_runtimes_packages() -> None:
    program = f"""{BLOCKED}
import asyncio
import branchline as bl

for name in bl.__all__:
    getattr(bl, name)

@bl.function
def p(s):
    s += bl.user("q") + bl.assistant(bl.gen("x", int) + bl.select("y", ["a", "b"]))
    with s.fork(2) as forks:
        forks += bl.gen("z")
    return s["x"], s["z"]

mock = bl.Mock({{"x": 3, "z": "v", "y": "b"}})
print(p.run(backend=mock).result, p.trace().is_static, list(p.stream(backend=mock))[-1].state["y"])
print(asyncio.run(p.arun(backend=mock)).result)
"""
    assert python(program).splitlines() == ["(3, ['v', 'v']) True b", "(3, ['v', 'v'])"]


def test_importing_is_quick_and_loads_little() -> None:
    program = """
import time, sys
begin = time.process_time()
import branchline as bl
bl.function, bl.gen, bl.select, bl.Mock
print(time.process_time() - begin, *sorted(
    {"torch", "transformers", "numpy", "asyncio", "rich", "greenlet", "jinja2"} & set(sys.modules)))
"""
    runs = [python(program).split() for _ in range(3)]
    assert min(float(run[0]) for run in runs) < 0.3
    assert not {"torch", "transformers", "numpy", "asyncio", "rich"} & set(runs[0][1:])


def test_public_names_are_sorted_complete_and_there() -> None:
    assert list(bl.__all__) == sorted(set(bl.__all__))
    assert set(bl.__all__) == set(bl._MODULE_OF)
    assert set(bl.__all__) < set(dir(bl))
    for name in bl.__all__:
        assert getattr(bl, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        bl.nonsense  # noqa: B018


def test_what_can_be_a_program() -> None:
    def no_state() -> None: ...

    def only_keywords(*, s: Any) -> None: ...

    def generator(s: Any) -> Any:
        yield

    async def async_generator(s: Any) -> Any:
        yield

    for func in (no_state, only_keywords, generator, async_generator):
        with pytest.raises(ProgramError):
            bl.function(func)


def test_options_of_function_are_checked_where_they_stand() -> None:
    with pytest.raises(InvalidOption, match="temperature"):
        bl.function(temprature=0.2)  # type: ignore[call-overload]
    with pytest.raises(bl.InvalidRequest, match="temperature"):
        bl.function(temperature=-1.0)(lambda s: None)


def test_a_wrong_call_says_what_the_arguments_are() -> None:
    @bl.function
    def program(s: bl.State, topic: str, deep: bool = False) -> None: ...

    mock = bl.Mock("x")
    for args, kwargs, says in (
        ((), {}, "missing a required argument: 'topic'"),
        (("a", True, 3), {}, "too many positional arguments"),
        (("a",), {"topic": "b"}, "multiple values for argument 'topic'"),
        ((), {"topik": "a"}, "Did you mean topic?"),
        (("a",), {"temprature": 1}, "Did you mean temperature?"),
    ):
        with pytest.raises(TypeError) as caught:
            program.run(*args, backend=mock, **kwargs)
        assert says in str(caught.value)


def test_open_ended_programs_take_what_run_does_not_know() -> None:
    @bl.function
    def program(s: bl.State, *words: str, **rest: Any) -> Any:
        return words, rest

    result = program.run("a", "b", other=1, temperature=0.5, backend=bl.Mock("x")).result
    assert result == (("a", "b"), {"other": 1})


def test_a_program_keeps_its_face() -> None:
    @bl.function
    def program(s: bl.State, topic: str = "x") -> None:
        """What it does."""

    assert program.__name__ == program.name == "program"
    assert program.__doc__ == "What it does."
    assert repr(program) == "<program program(topic: 'str' = 'x') -> 'None'>"


def test_an_error_reads_as_sentences() -> None:
    plain = bl.BackendError("the server is stopping", hint="Use another one.")
    assert str(plain) == "the server is stopping. Use another one."
    asked = bl.InvalidRequest("n is too large", value=9, hint="Use 8.").located(variable="x")
    assert str(asked) == "n is too large (in variable 'x') [got 9] Use 8."
    assert str(bl.ProgramError("no")) == "no"
