"""One program, one meaning: on the engine in this process and over the wire, the same values.

The oracle is the engine itself, asked by plain requests.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import branchline as bl
from branchline.lang.errors import AdapterNotFound
from tests.support.http_server import RunningServer

Backend = bl.Engine | bl.Endpoint
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


def settled(engine: bl.Engine) -> bool:
    """True when nothing runs and nothing is held, within a few seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        info = engine.info()
        if not info["scheduler"]["unfinished"] and not info["cache"]["leases"]:
            return bool(info["cache"]["violations"] == 0)
        time.sleep(0.01)
    return False


def test_generated_texts_are_those_of_plain_requests(backend: Backend, engine: bl.Engine) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "The capital of France is" + bl.gen("a", **GREEDY)
        s += " and then" + bl.gen("b", stop=["."], **GREEDY)
        return s["a"], s["b"]

    state = program.run(backend=backend)
    first = engine.generate("The capital of France is", **GREEDY)
    assert state["a"] == first.text
    ids = state.tokens()
    prompt = ids[: state.meta("b").prompt_tokens]
    assert state["b"] == engine.generate(prompt, stop=(".",), **GREEDY).text
    assert state.text() == f"The capital of France is{state['a']} and then{state['b']}"


def test_select_is_exact(backend: Backend, engine: bl.Engine) -> None:
    choices = [" Paris", " a city in the north", " Rome"]

    @bl.function
    def program(s: bl.State) -> Any:
        s += "The capital of France is" + bl.select("city", choices)
        return s["city"]

    state = program.run(backend=backend)
    rows = engine.score("The capital of France is", choices).token_logprobs
    assert [choice.text for choice in state.meta("city").choices] == choices
    for choice, row in zip(state.meta("city").choices, rows, strict=True):
        assert choice.logprob == pytest.approx(math.fsum(row), abs=1e-3)
        assert len(choice.token_logprobs) == len(row)
    means = [math.fsum(row) / len(row) for row in rows]
    assert state.result == choices[means.index(max(means))]


def test_forks_share_their_trunk_and_join(backend: Backend, engine: bl.Engine) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> Any:
        s += "A list of facts about the sea, one after another, each of them short."
        with s.fork(3) as branches:
            for number, branch in enumerate(branches):
                branch += f" Fact {number}:" + bl.gen("fact")
        s += " " + s["fact"][0] + bl.gen("end")
        return s["fact"], s["end"]

    engine.flush_cache()
    state = program.run(backend=backend)
    facts, _ = state.result
    trunk = "A list of facts about the sea, one after another, each of them short."
    for number, fact in enumerate(facts):
        ids = engine._engine.tokenizer.encode(trunk)
        ids += engine._engine.tokenizer.encode(f" Fact {number}:")
        assert fact == engine.generate(ids, **GREEDY).text
    metas = state.meta("fact")
    assert sum(meta.cached_tokens for meta in metas) >= 2 * 14, "the trunk is computed once"
    assert settled(engine)


def test_chat_turns_are_the_models_own(backend: Backend, engine: bl.Engine) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> str:
        s += bl.system("Be brief.") + bl.user("Name a fruit.")
        s += bl.assistant(bl.gen("fruit"))
        return s["fruit"]

    state = program.run(backend=backend)
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant"]
    ids = state.tokens()
    expected = engine.generate(ids[: state.meta("fruit").prompt_tokens], **GREEDY)
    assert state.result == expected.text
    assert "<|im_start|>user\nName a fruit.<|im_end|>" in state.text()


def test_streamed_pieces_are_the_value(backend: Backend) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> None:
        s += "One, two, three," + bl.gen("x") + " ä" + bl.gen("y")

    events = list(program.stream(backend=backend))
    done = events[-1]
    assert isinstance(done, bl.Done)
    for name in ("x", "y"):
        pieces = [e.text for e in events if isinstance(e, bl.TextDelta) and e.name == name]
        assert len(pieces) > 1 and "".join(pieces) == done.state[name]
    ready = [event.name for event in events if isinstance(event, bl.VariableReady)]
    assert ready == ["x", "y"]


@bl.function(**GREEDY)
def count(s: bl.State, start: int) -> str:
    s += f"Counting: {start}, {start + 1}," + bl.gen("next")
    return s["next"]


def test_a_batch_is_its_programs_one_by_one(backend: Backend) -> None:
    states = count.run_batch([{"start": n} for n in range(8)], backend=backend)
    alone = [count.run(start=n, backend=backend).result for n in range(8)]
    assert [state.result for state in states] == alone


def test_inside_a_running_event_loop(backend: Backend) -> None:
    @bl.function(**GREEDY)
    async def program(s: bl.State) -> Any:
        s += "Red, green,"
        first = await s.gen("x")
        async with s.fork(2) as branches:
            branches[0] += " or" + bl.gen("y")
            branches[1] += " and" + bl.gen("y")
        return first, await s.aget("y")

    async def several() -> Any:
        runs = [program.arun(backend=backend), program.arun(backend=backend)]
        one, other = await asyncio.gather(*runs)
        return one.result, other.result, count.run(start=3, backend=backend).result

    one, other, number = asyncio.run(several())
    assert one == other and len(one[1]) == 2
    assert number == count.run(start=3, backend=backend).result


@dataclass
class Place:
    name: str
    age: int


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        (int, lambda v: type(v) is int),
        (bool, lambda v: type(v) is bool),
        (Literal["red", "blue"], lambda v: v in ("red", "blue")),
        (datetime.date, lambda v: type(v) is datetime.date),
        (Place, lambda v: isinstance(v, Place)),
        (list[int], lambda v: isinstance(v, list)),
        (bl.regex("[a-c]{3}"), lambda v: len(v) == 3 and set(v) <= set("abc")),
        (bl.lark('start: "(" start ")" | "x"\n'), lambda v: v.strip("()") == "x"),
    ],
    ids=["int", "bool", "literal", "date", "dataclass", "list", "regex", "lark"],
)
def test_typed_values(backend: Backend, wanted: Any, check: Any) -> None:
    @bl.function(temperature=0.0, max_tokens=40)
    def program(s: bl.State) -> None:
        s += 'Answer: {"name": "Oslo", "age": 900}\nAnswer: ' + bl.gen("v", wanted)

    state = program.run(backend=backend)
    meta = state.meta("v")
    if meta.finish_reason == "length":
        with pytest.raises(bl.TruncatedError):
            state["v"]
        return
    assert bl.match(wanted, meta.text).status == "full"
    assert check(state["v"])


def test_captures_are_variables(backend: Backend) -> None:
    wanted = bl.seq("n=", bl.capture("n", bl.regex("[0-9]{2}")), ";", bl.capture("w", bool))

    @bl.function(**{**GREEDY, "max_tokens": 16})
    def program(s: bl.State) -> Any:
        s += "n=12;true\n" + bl.gen("all", wanted)
        return s["n"], s["w"], s["all"]

    n, w, _ = program.run(backend=backend).result
    assert len(n) == 2 and n.isdigit() and type(w) is bool


def test_seeds_logprobs_n_and_lists(backend: Backend, engine: bl.Engine) -> None:
    @bl.function(max_tokens=8)
    def program(s: bl.State, seed: int) -> Any:
        s += "My favourite animal is" + bl.gen("x", seed=seed, logprobs=2)
        s += " and" + bl.gen("three", n=3, seed=seed)
        for _ in range(2):
            s += "," + bl.gen("list", append=True, seed=seed)
        return s["x"], s["three"], s["list"]

    one, same, other = (program.run(seed=n, backend=backend) for n in (1, 1, 2))
    assert one.result == same.result and one.result != other.result
    assert len(one["three"]) == 3 and len(one["list"]) == 2
    meta = one.meta("x")
    assert meta.seed == 1 and len(meta.logprobs) == meta.output_tokens
    assert all(len(item.top) == 2 and item.logprob <= 0.0 for item in meta.logprobs)
    plain = engine.generate("My favourite animal is", max_tokens=8, seed=1, logprobs=2)
    assert plain.text == one["x"]
    assert [item.token_id for item in meta.logprobs] == [i.token_id for i in plain.logprobs]


def test_the_fastest_branch_wins_and_the_rest_frees_its_memory(
    backend: Backend, engine: bl.Engine
) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "Once upon a time"
        forks = s.fork(3)
        for number, branch in enumerate(forks):
            tokens = 4 if number == 1 else 4000
            branch += f" {number}" + bl.gen("story", max_tokens=tokens, ignore_eos=True)
        (first,) = forks.first(1)
        return forks[1] is first

    assert program.run(backend=backend).result is True
    assert settled(engine)


@pytest.mark.parametrize("options", [{"deadline_s": 0.3}, {}])
def test_deadlines(backend: Backend, engine: bl.Engine, options: dict[str, float]) -> None:
    @bl.function
    def program(s: bl.State) -> str:
        own = {} if options else {"deadline_s": 0.3}
        s += "Once upon a time" + bl.gen("x", max_tokens=6000, ignore_eos=True, **own)
        return s["x"]

    begin = time.monotonic()
    with pytest.raises(bl.DeadlineExceeded):
        program.run(backend=backend, **options)
    assert time.monotonic() - begin < 20
    assert settled(engine)


def test_leaving_a_stream_frees_everything(backend: Backend, engine: bl.Engine) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += "Once upon a time" + bl.gen("x", max_tokens=6000, ignore_eos=True)

    for event in program.stream(backend=backend):
        assert isinstance(event, bl.TextDelta)
        break
    assert settled(engine)


def test_what_the_engine_refuses_is_the_same_error(backend: Backend, engine: bl.Engine) -> None:
    @bl.function
    def too_long(s: bl.State) -> str:
        s += "word " * 20_000 + bl.gen("x")
        return s["x"]

    @bl.function
    def adapter(s: bl.State) -> None:
        s += "a" + bl.gen("x", adapter="none")

    with pytest.raises(bl.InvalidRequest) as caught:
        too_long.run(backend=backend)
    assert (caught.value.variable, caught.value.program) == ("x", "too_long")
    with pytest.raises(AdapterNotFound):
        adapter.run(backend=backend)
    assert count.run(start=1, backend=backend).result
    assert settled(engine)


def test_a_failing_branch_can_be_kept(backend: Backend) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> Any:
        s += "Numbers:"
        with s.fork(2, on_error="keep") as branches:
            branches[0] += " one" + bl.gen("x")
            branches[1] += " two " * 20_000 + bl.gen("x")
        return s["x"]

    good, bad = program.run(backend=backend).result
    assert isinstance(good, str) and isinstance(bad, bl.InvalidRequest)


def test_the_graph_of_a_run_says_what_each_node_did(backend: Backend) -> None:
    state = count.run(start=5, backend=backend)
    nodes = [node for node in state.graph.nodes if node.kind == "generate"]
    assert nodes[0].values == (state.result,)
    stats = nodes[0].stats
    assert stats is not None and stats.tokens == state.meta("next").output_tokens
    assert stats.end_s > stats.start_s
    again = count.run(start=5, backend=backend)
    meta = again.meta("next")
    assert meta.cached_tokens >= meta.prompt_tokens - 1, "the second run finds the first's prompt"


def test_programs_in_programs_and_defaults(backend: Backend) -> None:
    @bl.function(temperature=0.0)
    def inner(s: bl.State) -> str:
        s += " and" + bl.gen("in")
        return s["in"]

    @bl.function
    def outer(s: bl.State) -> Any:
        s += "Salt" + inner() + "."
        return s["in"]

    assert outer.run(backend=backend, max_tokens=3).meta("in").output_tokens <= 3


def test_old_names_of_a_server(server: RunningServer) -> None:
    endpoint = bl.RuntimeEndpoint(server.url, chat_template_name="qwen")
    try:
        assert endpoint.get_model_name() == "smollm2-135m"
        assert endpoint.get_server_info()["url"] == server.url
        assert count(start=1, backend=endpoint)["next"] == count.run(1, backend=endpoint)["next"]
    finally:
        endpoint.close()
    with pytest.raises(bl.UnsupportedFeature):
        bl.RuntimeEndpoint(server.url, verify="own.pem")
    with pytest.raises(bl.InvalidRequest):
        bl.Engine("smollm2-135m", model_path="smollm2-135m")


def test_a_value_that_a_stop_cut_short_says_so(backend: Backend) -> None:
    @bl.function(temperature=0.0)
    def program(s: bl.State) -> Any:
        s += "x" + bl.gen("v", bl.choices(["red", "redder"]), stop="e")
        return s.meta("v").text, s.meta("v").finish_reason

    state = program.run(backend=backend)
    assert state.result == ("r", "stop")
    with pytest.raises(bl.TruncatedError, match="cut by the stop 'e'"):
        state["v"]
