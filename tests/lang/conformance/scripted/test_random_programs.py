"""Law: whatever a program is made of, its text, variables and turns are what a plain reading of it
gives, however it is run.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl

LETTERS = st.text("abc ", min_size=1, max_size=4)

STEP = st.recursive(
    st.one_of(
        st.tuples(st.just("text"), LETTERS),
        st.tuples(st.just("gen"), st.just("")),
        st.tuples(st.just("fstring"), LETTERS),
        st.tuples(st.just("select"), st.just("")),
        st.tuples(st.just("read"), st.just("")),
    ),
    lambda steps: st.one_of(
        st.tuples(st.just("fork"), st.lists(st.lists(steps, max_size=3), min_size=1, max_size=3)),
        st.tuples(st.just("copy"), st.lists(steps, max_size=3)),
        st.tuples(st.just("scope"), st.lists(steps, max_size=3)),
    ),
    max_leaves=12,
)


def reply(name: str, text: str) -> str:
    """Depends on all of the text before, so a lane that is off by one character shows."""
    return f"<{len(text)}>"


class Reader:
    """The plain reading: strings alone. Names are numbered over the whole program."""

    def __init__(self) -> None:
        self.count = 0
        self.variables: dict[str, Any] = {}

    def read(self, steps: list[Any], text: str) -> str:
        for kind, content in steps:
            if kind == "text":
                text += content
            elif kind in ("gen", "select", "fstring"):
                text += content if kind == "fstring" else ""
                value = reply("", text) if kind != "select" else "no"
                self.variables[f"v{self.count}"] = value
                self.count += 1
                text += value + (content if kind == "fstring" else "")
            elif kind == "scope":
                before, name = text, f"s{self.count}"
                self.count += 1
                text = self.read(content, text)
                self.variables[name] = text[len(before) :]
            elif kind == "copy":
                self.read(content, text)
            elif kind == "fork":
                added = [self.read(branch, text)[len(text) :] for branch in content]
                text += "".join(added)
        return text


class Writer:
    """The same steps on a state."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.count = 0
        self.found = found
        self.names: list[tuple[bl.State, str]] = []

    def name(self, s: bl.State, letter: str = "v") -> str:
        name = f"{letter}{self.count}"
        self.count += 1
        self.names.append((s, name))
        return name

    def write(self, steps: list[Any], s: bl.State) -> None:
        for kind, content in steps:
            if kind == "text":
                s += content
            elif kind == "gen":
                s += bl.gen(self.name(s))
            elif kind == "fstring":
                s += f"{content}{bl.gen(self.name(s))}{content}"
            elif kind == "select":
                s += bl.select(self.name(s), ["yes", "no"])
            elif kind == "read" and self.names:
                state, name = self.names[-1]
                if not name.startswith("s"):
                    state[name]
            elif kind == "scope":
                with s.scope(self.name(s, "s")):
                    self.write(content, s)
            elif kind == "copy":
                self.write(content, s.copy())
            elif kind == "fork":
                forks = s.fork(len(content))
                for branch, branch_steps in zip(forks, content, strict=True):
                    self.write(branch_steps, branch)
                forks.join("append")

    def collect(self) -> None:
        for state, name in self.names:
            self.found[name] = state[name]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(STEP, max_size=6))
def test_a_program_means_what_it_says(steps: list[Any]) -> None:
    reader = Reader()
    wanted = reader.read(steps, "")

    @bl.function
    def program(s: bl.State) -> Any:
        found: dict[str, Any] = {}
        writer = Writer(found)
        writer.write(steps, s)
        writer.collect()
        return s.text(), found

    @bl.function
    async def aprogram(s: bl.State) -> Any:
        found: dict[str, Any] = {}
        writer = Writer(found)
        writer.write(steps, s)
        text = await s.atext()
        writer.collect()
        return text, found

    def scripted(name: str, text: str) -> str:
        select = name in reader.variables and reader.variables[name] == "no"
        return "no" if select else reply(name, text)

    mock = bl.Mock(scripted)
    with mock:
        results = [program.run().result, aprogram.run().result]
        results += [state.result for state in program.run_batch([{}] * 3, max_concurrency=2)]
        results.append(asyncio.run(program.arun()).result)
        results.append(list(program.stream())[-1].state.result)  # type: ignore[union-attr]
    mock.close()
    assert all(result == (wanted, reader.variables) for result in results)
