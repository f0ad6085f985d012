"""Programs written for SGLang's language run under `import branchline as sgl`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import branchline as sgl
from branchline.lang.errors import InvalidRequest


@sgl.function
def multi_turn_question(s: Any, question_1: str, question_2: str) -> None:
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
    s += sgl.user(question_2)
    s += sgl.assistant_begin() + sgl.gen("answer_2", max_tokens=256) + sgl.assistant_end()


QUESTIONS = {"question_1": "What?", "question_2": "Why?"}
REPLIES = {"answer_1": "first answer", "answer_2": "second answer here"}


@pytest.fixture(autouse=True)
def default_backend() -> Any:
    sgl.set_default_backend(sgl.Mock(REPLIES))
    yield
    sgl.set_default_backend(None)


def test_run_and_read() -> None:
    state = multi_turn_question.run(**QUESTIONS, temperature=0.1)
    assert state["answer_1"] == "first answer"
    assert [m["role"] for m in state.messages()][-1] == "assistant"
    assert state.get_meta_info("answer_2")["output_tokens"] == 18
    assert state.error() is None
    assert state.get_var("answer_2") == REPLIES["answer_2"]
    state.sync()
    assert state.ret_value is None
    assert list(state.text_iter("answer_1")) == ["first answer"]


def test_run_batch() -> None:
    states = multi_turn_question.run_batch([QUESTIONS] * 2, num_threads="auto", progress_bar=False)
    assert [state["answer_2"] for state in states] == [REPLIES["answer_2"]] * 2


def test_streaming_by_text_iter() -> None:
    state = multi_turn_question.run(**QUESTIONS, stream=True)
    pieces = list(state.text_iter("answer_2"))
    assert len(pieces) > 1
    assert "".join(pieces) == REPLIES["answer_2"]
    assert "second answer here" in "".join(state.text_iter())
    assert state["answer_1"] == "first answer"
    assert state.error() is None
    assert "first answer" in state.text()


def test_streaming_by_text_async_iter() -> None:
    async def collect() -> Any:
        state = multi_turn_question.run(**QUESTIONS, stream=True)
        plain = [piece async for piece in state.text_async_iter("answer_2")]
        state = multi_turn_question.run(**QUESTIONS, stream=True)
        with_meta = [
            pair async for pair in state.text_async_iter("answer_2", return_meta_data=True)
        ]
        everything = [piece async for piece in state.text_async_iter()]
        return plain, with_meta, everything

    plain, with_meta, everything = asyncio.run(collect())
    assert "".join(plain) == "".join(piece for piece, _ in with_meta) == REPLIES["answer_2"]
    assert "first answer" in "".join(everything)


def test_choices_and_their_methods() -> None:
    @sgl.function
    def tool_use(s: Any, question: str) -> None:
        s += "To answer this question: " + question + ", "
        s += "I need to use a " + sgl.gen("tool", choices=["calculator", "web browser"]) + ". "
        s += sgl.gen(
            "answer_1",
            choices=["first answer", "x"],
            choices_method=sgl.unconditional_likelihood_normalized,
        )
        s += sgl.select("kind", ["a", "b"], choices_method=sgl.greedy_token_selection)

    state = tool_use.run(question="2 + 2")
    assert state["tool"] in ("calculator", "web browser")
    assert state["answer_1"] == "first answer"
    assert sgl.token_length_normalized == "token_length_normalized"


def test_fork_and_join() -> None:
    @sgl.function
    def tips(s: Any) -> None:
        s += "Two tips: "
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += f"Tip {i}: "
            f += sgl.gen("answer_1", stop=["\n\n"])
        s += "1:" + forks[0]["answer_1"] + "\n2:" + forks[1]["answer_1"] + "\n"
        s += "In summary" + sgl.gen("answer_2")

    assert "1:first answer" in tips.run().text()


def test_typed_and_regex_gens() -> None:
    @sgl.function
    def typed(s: Any) -> None:
        s += sgl.gen("a", dtype=int)  # type: ignore[call-arg]
        s += sgl.gen_int("b", max_tokens=4) + sgl.gen_string("c") + sgl.gen("d", 64)
        s += sgl.gen("e", regex=r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)")
        s += sgl.gen("f", return_logprob=True, top_logprobs_num=0)  # type: ignore[call-arg]

    mock = sgl.Mock({"a": 1, "b": 22, "c": "x", "d": "y", "e": "127.0.0.1", "f": "z"})
    state = typed.run(backend=mock)
    assert [state[name] for name in "abcdef"] == [1, 22, "x", "y", "127.0.0.1", "z"]
    assert len(state.meta("f").logprobs) == 1


def test_scopes_and_set_variables() -> None:
    @sgl.function
    def scoped(s: Any) -> None:
        with s.var_scope("whole"):
            s += "<" + sgl.gen("answer_1") + ">"
        s.set_var("mine", 3)
        with s.user():
            s += "hi"
        s += sgl.user_begin() + "x" + sgl.user_end() + sgl.system_begin() + "y" + sgl.system_end()

    state = scoped.run()
    assert (state["whole"], state["mine"]) == ("<first answer>", 3)


def test_backend_functions() -> None:
    sgl.flush_cache()
    assert sgl.get_server_info()["model"] == "mock"
    assert issubclass(sgl.Runtime, sgl.Engine) and callable(sgl.Engine.shutdown)


def test_options_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(sgl.UnsupportedFeature):
        sgl.gen("x", logprob_start_len=0)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest):
        sgl.gen("x", 5, max_tokens=3)
    with pytest.raises(InvalidRequest):
        sgl.gen("x", int, dtype=str)  # type: ignore[call-arg]
    with pytest.raises(sgl.UnsupportedFeature):
        multi_turn_question.run_batch([QUESTIONS], generator_style=True)


@sgl.function
def ask(s: Any, question: str) -> Any:
    s += "Q: " + question + "\nA:" + sgl.gen("answer_1", stop="\n")
    return s


def test_a_call_outside_of_programs_is_a_run() -> None:
    state = ask("What?", temperature=0)
    assert state["answer_1"] == "first answer" and "answer_1" in state
    assert state.text() == "Q: What?\nA:first answer"
    assert state.ret_value.text() == state.text()
    assert ask(question="What?").get_meta_info("answer_1")["output_tokens"] == 12
    assert ask("What?").error() is None
    pieces = list(ask("What?", stream=True).text_iter("answer_1"))
    assert len(pieces) > 1 and "".join(pieces) == "first answer"


def test_a_call_that_is_read_runs_once_and_no_sooner() -> None:
    asked: list[str] = []

    def reply(name: str, text: str) -> str:
        asked.append(name)
        return "yes"

    call = ask("What?", backend=sgl.Mock(reply))
    assert not asked
    assert (call["answer_1"], call.text()) == ("yes", "Q: What?\nA:yes")
    assert asked == ["answer_1"]
    with pytest.raises(AttributeError):
        call.no_such_thing  # noqa: B018
    with pytest.raises(InvalidRequest):
        ask("What?", no_such_option=1)["answer_1"]


def test_a_call_is_still_an_expression_inside() -> None:
    @sgl.function
    def outer(s: Any) -> Any:
        s += "First. " + ask("What?")
        return s["answer_1"]

    assert outer.run().result == "first answer"


def test_old_names_of_run_options() -> None:
    state = multi_turn_question.run(**QUESTIONS, max_new_tokens=5, use_thread=True)
    assert state["answer_1"] == "first answer", "the call's own max_tokens wins"
    states = ask.run_batch([{"question": "What?"}], max_new_tokens=5, return_logprob=True)
    assert states[0]["answer_1"] == "first"
    assert len(states[0].meta("answer_1").logprobs) == 5
    with pytest.raises(InvalidRequest):
        ask.run(question="What?", max_new_tokens=5, max_tokens=6)

    @sgl.function
    def own(s: Any, max_new_tokens: int) -> int:
        return max_new_tokens

    assert own.run(max_new_tokens=7).result == 7, "an argument of the function is its own"


def test_turns_by_methods() -> None:
    @sgl.function
    def chat(s: Any) -> None:
        s.system("Be brief.")
        s.user("Hi, " + sgl.gen("answer_1"))
        with s.assistant():
            s += sgl.gen("answer_2")

    messages = chat.run().messages()
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "Be brief."),
        ("user", "Hi, first answer"),
        ("assistant", "second answer here"),
    ]


def test_a_copy_as_a_block_and_forks_by_size() -> None:
    @sgl.function
    def branching(s: Any) -> Any:
        s += "x"
        found = []
        for _ in range(2):
            with s.copy() as other:
                other += "y" + sgl.gen("answer_1")
                found.append(other["answer_1"])
        with pytest.raises(sgl.ProgramError):
            other += "more"
        forks = s.fork(size=2)
        forks += lambda i: f" {i} " + sgl.gen("answer_2")
        forks.join()
        return found, "answer_1" in s, s["answer_2"], s.text(), forks[1].text()

    second = REPLIES["answer_2"]
    assert branching.run().result == (
        ["first answer", "first answer"],
        False,
        [second, second],
        "x",
        f"x 1 {second}",
    )


def test_variables_of_a_finished_state_may_be_set() -> None:
    state = ask.run(question="What?")
    state["answer_1"] = state["answer_1"].upper()
    state["mine"] = 3
    assert (state["answer_1"], state["mine"]) == ("FIRST ANSWER", 3)


def test_text_iter_by_name_of_its_argument() -> None:
    state = multi_turn_question.run(**QUESTIONS, stream=True)
    assert "".join(state.text_iter(var_name="answer_2")) == REPLIES["answer_2"]
    assert list(ask.run("What?").text_iter(var_name="answer_1")) == ["first answer"]

    async def collect() -> str:
        state = multi_turn_question.run(**QUESTIONS, stream=True)
        return "".join([piece async for piece in state.text_async_iter(var_name="answer_2")])

    assert asyncio.run(collect()) == REPLIES["answer_2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("whole", "<first answer>"),
        ("mine", "3"),
        ("n", "12"),
        ("answer_2", "second answer here" * 2),
    ],
)
def test_text_iter_of_what_is_no_output_of_its_own(name: str, text: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        with s.var_scope("whole"):
            s += "<" + sgl.gen("answer_1") + ">"
        s.set_var("mine", 3)
        s += sgl.gen("count", sgl.seq("n=", sgl.capture("n", int)))
        with s.fork(2) as branches:
            for branch in branches:
                branch += sgl.gen("answer_2")

    mock = sgl.Mock({**REPLIES, "count": "n=12"})
    assert list(program.run(backend=mock).text_iter(name)) == [text]
    assert list(program.run(backend=mock, stream=True).text_iter(name)) == [text]

    async def collect() -> list[Any]:
        state = program.run(backend=mock, stream=True)
        return [pair async for pair in state.text_async_iter(name, return_meta_data=True)]

    assert [piece for piece, _ in asyncio.run(collect())] == [text]


def test_meta_info_has_the_old_names_too() -> None:
    @sgl.function
    def both(s: Any) -> None:
        s += sgl.gen("answer_1", return_logprob=True, top_logprobs_num=0)  # type: ignore[call-arg]
        s += sgl.gen("tool", choices=["calculator", "search engine"])

    state = both.run()
    info = state.get_meta_info("answer_1")
    assert info["completion_tokens"] == info["output_tokens"] == 12
    assert [(value, number) for value, number, _ in info["output_token_logprobs"]] == [
        (0.0, byte) for byte in b"first answer"
    ]
    assert info["output_top_logprobs"] == [[]] * 12
    choices = state.meta("tool").choices
    info = state.get_meta_info("tool")
    for choice, row, mean in zip(
        choices, info["input_token_logprobs"], info["normalized_prompt_logprobs"], strict=True
    ):
        assert [entry[0] for entry in row] == list(choice.token_logprobs)
        assert mean == pytest.approx(choice.logprob / len(row))


def test_types_by_their_old_names() -> None:
    @sgl.function
    def typed(s: Any) -> None:
        s += sgl.gen("a", dtype="int") + sgl.gen_int("b", 4)  # type: ignore[call-arg]
        s += sgl.gen_string("c", 3)

    state = typed.run(backend=sgl.Mock({"a": 1, "b": 22, "c": "xyz0"}))
    assert [state[name] for name in "abc"] == [1, 22, "xyz"]
    with pytest.raises(InvalidRequest):
        sgl.gen("a", dtype="complex")  # type: ignore[call-arg]
