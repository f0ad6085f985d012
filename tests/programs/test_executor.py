"""Laws of running programs: tokens of a lane, requests, forks and joins."""

from __future__ import annotations

import threading

import pytest

from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    Close,
    Closed,
    EndRole,
    Event,
    Fork,
    Join,
    JoinReady,
    OpenProgram,
    ReadLane,
    Select,
    SetVariable,
    TextDelta,
    ValueReady,
    VarRef,
)
from tests.programs.helpers import Program, gen, plain, rig, text
from tests.support.scripted_port import ChunkTokenizer, ScriptedPort

# ---- tokens of a lane


def test_a_program_runs_and_is_closed_after_its_value() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "Hello "), gen(1, "x"), Close())
    port.run()
    assert program.values() == {"x": "<x>"}
    assert isinstance(program.events[-1], Closed) and program.closed
    assert program.events[-1].error is None
    assert port.leases == {} and executor.stats().programs_open == 0


def test_adjacent_literals_are_one_text_whatever_the_sends() -> None:
    port, executor = rig()
    one, many = Program(executor, "one"), Program(executor, "many")
    one.send(text(0, "a"), text(1, "b"), AppendText(0, 2, ("c", "d")), gen(3, "x"), Close())
    for op in (text(0, "a"), text(1, "b"), text(2, "cd"), gen(3, "x"), Close()):
        many.send(op)
        port.pump()
    port.run()
    prompts = [request.prompt_ids for request in port.requests]
    assert prompts[0] == prompts[1] == plain(port, "abcd") != plain(port, "a", "b", "cd")


def test_frozen_pieces_are_not_touched() -> None:
    port, executor = rig(ScriptedPort(lambda request: "yy"))
    program = Program(executor)
    program.send(text(0, "ab"), gen(1, "x"), text(2, "c"), Fork(0, 3, (1,)), text(4, "d", 1))
    program.send(ReadLane(1, 5), ReadLane(0, 6), Close())
    port.run()
    assert list(program.lane(1).token_ids) == plain(port, "ab", "yy", "c", "d")
    assert program.lane(1).text == "abyycd"
    assert list(program.lane(0).token_ids) == plain(port, "ab", "yy", "c")


def test_generated_ids_are_kept_as_generated() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), gen(2, "y"), Close())
    port.pump()
    request = port.requests[0]
    odd = ["abc", "def"]
    running = port.running["p/0/1"]
    port.finish(request.id, "abcdef")  # canonical here; the ids are what counts
    assert port.requests[1].prompt_ids == plain(port, "q", *odd)
    assert running.request is request
    port.run()


def test_user_text_cannot_inject_special_tokens_but_turns_are_special() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(BeginRole(0, 0, "user"), text(1, "<|end|>hi"), EndRole(0, 2))
    program.send(BeginRole(0, 3, "assistant"), gen(4, "x"), EndRole(0, 5), ReadLane(0, 6), Close())
    port.run()
    ids = list(program.lane(0).token_ids)
    assert ids.count(2) == 3  # default system turn, user, assistant
    assert ids.count(3) == 3
    assert program.lane(0).text == (
        "<|turn|>system\nBe good.<|end|>\n<|turn|>user\n<|end|>hi<|end|>\n"
        "<|turn|>assistant\n<x><|end|>\n"
    )


def test_closing_ids_that_were_generated_are_not_doubled() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(BeginRole(0, 0, "assistant"), gen(1, "x"), EndRole(0, 2), ReadLane(0, 3), Close())
    port.pump()
    running = port.running["p/0/1"]
    real = port._result(running.request, 0, "ok", "stop")  # type: ignore[arg-type]
    real.token_ids = [*real.token_ids, 2]
    port.running.clear()
    running.on_output(real)
    port.run()
    ids = list(program.lane(0).token_ids)
    assert ids[-3:] == [*plain(port, "ok"), 2, *plain(port, "\n")]


@pytest.mark.parametrize(
    ("bos", "add_bos", "first"), [(False, False, [2]), (True, False, [1]), (True, True, [1])]
)
def test_an_empty_lane_starts_with_a_start_token(
    bos: bool, add_bos: bool, first: list[int]
) -> None:
    port, executor = rig(ScriptedPort(tokenizer=ChunkTokenizer(bos=bos, add_bos=add_bos)))
    program = Program(executor)
    program.send(gen(0, "x"), ReadLane(0, 1), Close())
    port.run()
    assert port.requests[0].prompt_ids == first
    assert program.lane(0).text == "<x>"


def test_bos_comes_first_exactly_when_the_tokenizer_wants_it() -> None:
    port, executor = rig(ScriptedPort(tokenizer=ChunkTokenizer(bos=True, add_bos=True)))
    program = Program(executor)
    program.send(text(0, "hi"), text(1, " all"), gen(2, "x"), text(3, "z"), gen(4, "y"), Close())
    port.run()
    assert port.requests[0].prompt_ids == [1, *plain(port, "hi all")]
    assert port.requests[1].prompt_ids.count(1) == 1


def test_ten_steps_tokenize_only_what_is_new() -> None:
    port, executor = rig(ScriptedPort(lambda request: "word " * 20))
    program = Program(executor)
    new = 0
    for step in range(10):
        piece = f"step {step}: " + "some new text " * 5
        new += len(port.tokenizer._plain(piece))
        program.send(text(2 * step, piece), gen(2 * step + 1, f"x{step}"))
        port.run()
    program.send(Close())
    port.run()
    assert executor.stats().tokens_tokenized == new
    assert len(port.requests[-1].prompt_ids) > 3 * len(port.requests[0].prompt_ids)


def test_same_literal_is_tokenized_once_for_many_programs() -> None:
    port, executor = rig()
    for index in range(50):
        Program(executor, str(index)).send(text(0, "the same text"), gen(1, "x"), Close())
    port.run()
    assert [item for item, _ in port.tokenizer.encoded] == ["the same text"]
    assert executor.stats().tokens_reused == 49 * len(plain(port, "the same text"))


def test_literal_text_is_tokenized_in_the_thread_that_sends() -> None:
    port, executor = rig()
    threads: list[str] = []
    encode = port.tokenizer.encode

    def spy(content: str, *, special: bool = False) -> list[int]:
        threads.append(threading.current_thread().name)
        return encode(content, special=special)

    port.tokenizer.encode = spy  # type: ignore[method-assign]
    program = Program(executor)
    sender = threading.Thread(
        target=lambda: program.send(text(0, "hi"), gen(1, "x"), Close()), name="sender"
    )
    sender.start()
    sender.join()
    port.run()
    assert threads == ["sender"] and program.closed


# ---- requests


def test_next_node_is_submitted_in_the_callback_of_the_one_before() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "a"), gen(1, "x"), text(2, "b"), gen(3, "y"), Close())
    port.pump()
    port.finish("p/0/1")
    assert [request.id for request in port.requests] == ["p/0/1", "p/0/3"]
    assert program.events == []  # the sink is called when the slice is over
    port.pump()
    assert program.values() == {"x": "<x>"}
    port.run()


def test_requests_carry_hints_and_deadlines() -> None:
    port, executor = rig()
    events: list[Event] = []
    opened = OpenProgram(program_id="p", name="n", priority=2, deadline_s=10, namespace="ns")
    session = executor.open(opened, events.extend)
    none = SamplingParams(max_tokens=None)
    session.send([text(0, "abc"), gen(1, "x", deadline_s=3, sampling=none, priority=5)])
    session.send([Select(lane=0, node=2, name="y", choices=("a", "b")), Close()])
    port.now = 1.0
    port.run()
    first, second = port.requests
    assert isinstance(first, GenerateRequest) and isinstance(second, ScoreRequest)
    assert (first.program_id, first.lane_id, first.name) == ("p", "p/0", "x")
    assert (first.namespace, first.priority, second.priority) == ("ns", 5, 2)
    assert first.sampling.max_tokens == port.max_context - 1
    assert (first.deadline, second.deadline) == (4.0, 10.0)


def test_a_burst_wakes_the_loop_once_and_events_are_batched() -> None:
    port, executor = rig()
    programs = [Program(executor, str(index)) for index in range(20)]
    for program in programs:
        program.send(text(0, "a"), gen(1, "x", stream=True))
        program.send(gen(2, "y"), Close())
    assert executor.stats().wakes == 1
    port.pump()
    for index in range(20):
        port.delta(f"{index}/0/1", "he")
        port.delta(f"{index}/0/1", "llo")
        port.finish(f"{index}/0/1", "hello")
    port.pump()
    for program in programs:
        assert len(program.batches) == 1
        assert [type(event) for event in program.events] == [TextDelta, TextDelta, ValueReady]
    port.run()
    assert all(program.closed for program in programs)


def test_a_flood_of_programs_lets_the_engine_have_its_turns() -> None:
    port, executor = rig(slice_s=0.0)
    programs = [Program(executor, str(index)) for index in range(30)]
    for program in programs:
        program.send(text(0, "a"), gen(1, "x"), Close())
    turns = 0
    while len(port.requests) < 30:
        port.turn()
        turns += 1
        assert len(port.requests) == turns
    port.run()
    assert all(program.closed for program in programs)


def test_deltas_only_for_streaming_nodes() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "a"), gen(1, "x"), Close())
    port.pump()
    port.delta("p/0/1", "he")
    port.run()
    assert program.all(TextDelta) == []


def test_n_outputs_are_reported_and_the_lane_goes_on_with_the_first() -> None:
    port, executor = rig()
    program = Program(executor)
    sampling = SamplingParams(n=3)
    program.send(text(0, "a"), gen(1, "x", sampling=sampling), gen(2, "y"), Close())
    port.run()
    value = program.all(ValueReady)[0]
    assert value.texts == ("<x>", "<x>'", "<x>''")
    assert port.requests[1].prompt_ids == plain(port, "a", "<x>")
    counts = [len(plain(port, item)) for item in value.texts]
    assert value.meta.output_tokens == sum(counts)


def test_engines_that_answer_inside_submit_work_at_any_depth() -> None:
    port, executor = rig(ScriptedPort(sync=True, max_context=1 << 20))
    program = Program(executor)
    program.send(text(0, "a"), *(gen(node, f"x{node}") for node in range(1, 1000)), Close())
    port.run()
    assert len(program.values()) == 999 and program.closed


def test_deeply_nested_forks_do_not_recurse() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(*(Fork(lane, lane, (lane + 1,)) for lane in range(3000)))
    program.send(gen(5000, "x", lane=3000), Close())
    port.run()
    assert program.values() == {"x": "<x>"}


# ---- variables, forks, joins


def test_fork_shares_tokens_and_variables() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "root "), gen(1, "x"), Fork(0, 2, (1, 2)))
    program.send(AppendText(1, 3, ("on ", VarRef("x", 1))), gen(4, "a", lane=1))
    program.send(text(5, "two", 2), gen(6, "b", lane=2), Close())
    port.run()
    trunk = plain(port, "root ", "<x>")
    assert port.requests[1].prompt_ids == trunk + plain(port, "on <x>")
    assert port.requests[2].prompt_ids == trunk + plain(port, "two")


def test_reference_into_another_lane_waits_for_what_was_sent_before() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1))
    program.send(AppendText(0, 3, ("saw ", VarRef("x", 1))), SetVariable(1, 4, "x", "later"))
    program.send(gen(5, "y"), ReadLane(0, 6), Close())
    port.run()
    assert program.lane(0).text == "qsaw <x><y>"
    assert port.requests[1].prompt_ids == plain(port, "q", "saw <x>")


def test_reading_a_variable_does_not_split_the_text_of_its_lane() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), Fork(0, 2, (1,)))
    program.send(AppendText(0, 3, (VarRef("x", 0), "a")))
    program.send(AppendText(1, 4, (VarRef("x", 0),)), text(5, "bc"), ReadLane(0, 6), Close())
    port.run()
    assert list(program.lane(0).token_ids) == plain(port, "q", "<x>", "<x>abc")


def test_join_gather_waits_for_all_children() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "a", lane=1), gen(3, "b", lane=2))
    program.send(Join(0, 4, (1, 2)), text(5, "!"), gen(6, "c"), Close())
    port.pump()
    port.finish("p/2/3")
    port.pump()
    assert program.all(JoinReady) == [] and len(port.requests) == 2
    port.run()
    assert program.all(JoinReady) == [JoinReady(0, 4)]
    assert port.requests[2].prompt_ids == plain(port, "q", "!")


def test_join_append_appends_ids_as_they_are_in_order() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)))
    program.send(text(2, "ab", 2), gen(3, "b", lane=2), text(4, "cd", 2), text(5, "ef", 1))
    program.send(Join(0, 6, (1, 2), "append"), text(7, "later", 1), ReadLane(0, 8), Close())
    port.run()
    assert program.lane(0).text == "qefab<b>cd"
    assert list(program.lane(0).token_ids) == plain(port, "q", "ef", "ab", "<b>", "cd")


def test_join_append_of_empty_lanes_has_one_start_token() -> None:
    port, executor = rig(ScriptedPort(tokenizer=ChunkTokenizer(bos=True, add_bos=True)))
    program = Program(executor)
    program.send(Fork(0, 0, (1, 2)), gen(1, "a", lane=1), text(2, "zz", 2))
    program.send(Join(0, 3, (1, 2), "append"), gen(4, "c"), Close())
    port.run()
    assert port.requests[-1].prompt_ids == [1, *plain(port, "<a>", "zz")]


def test_join_append_inside_a_turn_counts_as_its_content() -> None:
    port, executor = rig()
    seen: list[list[tuple[str, str]]] = []
    begin = port.turns.begin

    def spy(history: list[tuple[str, str]], role: str) -> str:
        seen.append(list(history))
        return begin(history, role)

    port.turns.begin = spy  # type: ignore[assignment,method-assign]
    program = Program(executor)
    program.send(BeginRole(0, 0, "user"), text(1, "a"), Fork(0, 2, (1, 2)))
    program.send(text(3, "b", 1), text(4, "c", 2), Join(0, 5, (1, 2), "append"))
    program.send(text(6, "d"), EndRole(0, 7), BeginRole(0, 8, "assistant"), Close())
    port.run()
    assert seen == [[], [("user", "abcd")]]


def test_join_append_refuses_turns_that_do_not_fit() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(Fork(0, 0, (1,)), BeginRole(1, 1, "user"), Join(0, 2, (1,), "append"), Close())
    port.run()
    assert program.failures() == {2: "ProgramError"}
    other = Program(executor, "other")
    other.send(BeginRole(0, 0, "user"), Fork(0, 1, (1,)), EndRole(1, 2))
    other.send(Join(0, 3, (1,), "append"), Close())
    port.run()
    assert other.failures() == {3: "ProgramError"}
