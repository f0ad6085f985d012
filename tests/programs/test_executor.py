"""Laws of running programs: tokens, order, leases, failures, ends."""

from __future__ import annotations

import threading

import pytest

from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError, ProgramError, from_wire
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.graph import GraphBuilder
from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    Cancel,
    Close,
    Closed,
    Drop,
    EndRole,
    Event,
    Fork,
    Join,
    JoinReady,
    NodeFailed,
    OpenProgram,
    ReadLane,
    Select,
    SetVariable,
    TextDelta,
    ValueReady,
    VarRef,
)
from tests.programs.helpers import SAMPLING, Program, gen, rig, text
from tests.support.scripted_port import ChunkTokenizer, ScriptedPort


def plain(port: ScriptedPort, *pieces: str) -> list[int]:
    """Ids of pieces tokenized one by one."""
    return [token for piece in pieces for token in port.tokenizer._plain(piece)]


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


# ---- failures


def test_first_error_fails_later_values_and_forks_of_its_lane_only() -> None:
    port, executor = rig(
        ScriptedPort(lambda r: BackendError("no luck") if r.name == "bad" else f"<{r.name}>")
    )
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "bad", lane=1), gen(3, "fine", lane=2))
    program.send(gen(4, "after", lane=1), Fork(1, 5, (3,)), gen(6, "child", lane=3))
    program.send(Join(0, 7, (1, 2)), Close())
    port.run()
    assert program.values() == {"fine": "<fine>"}
    assert program.failures() == {2: "BackendError", 4: "BackendError", 6: "BackendError"}
    errors = [event.error for event in program.all(NodeFailed)]
    assert errors[0] == errors[1] == errors[2]
    assert errors[0]["variable"] == "bad" and errors[0]["program"] == "name-p"
    assert program.all(JoinReady) == [JoinReady(0, 7)]
    closed = program.all(Closed)[0]
    assert closed.error is not None and "no luck" in str(from_wire(closed.error))
    assert port.leases == {}


def test_join_append_of_a_failed_branch_fails_the_parent() -> None:
    port, executor = rig(ScriptedPort(lambda r: BackendError("no luck")))
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1), Join(0, 3, (1,), "append"))
    program.send(gen(4, "y"), Close())
    port.run()
    assert program.failures() == {2: "BackendError", 3: "BackendError", 4: "BackendError"}


def test_errors_at_submit_and_bad_ops_fail_their_node() -> None:
    port, executor = rig(ScriptedPort(max_context=4))
    long = Program(executor, "long")
    long.send(text(0, "a b c d e"), gen(1, "x"), Close())
    roles = Program(executor, "roles")
    roles.send(BeginRole(0, 0, "wizard"), gen(1, "x"), Close())
    nested = Program(executor, "nested")
    nested.send(BeginRole(0, 0, "user"), BeginRole(0, 1, "user"), Close())
    unopened = Program(executor, "unopened")
    unopened.send(EndRole(0, 0), Close())
    lanes = Program(executor, "lanes")
    lanes.send(gen(0, "x", lane=7), Fork(0, 1, (0,)), Join(0, 2, (9,)), Close())
    refs = Program(executor, "refs")
    refs.send(AppendText(0, 0, (VarRef("nothing"),)), gen(1, "x"), Close())
    args = Program(executor, "args")
    args.send(AppendText(0, 0, (ArgRef("a"),)), Close())
    adapter = Program(executor, "adapter")
    adapter.send(text(0, "a"), gen(1, "x", adapter="style"), Close())
    surrogate = Program(executor, "surrogate")
    surrogate.send(text(0, "\ud800"), gen(1, "x"), Close())
    port.run()
    assert long.failures() == {1: "InvalidRequest"}
    assert roles.failures() == {0: "InvalidRequest", 1: "InvalidRequest"}
    assert nested.failures() == {1: "ProgramError"}
    assert unopened.failures() == {0: "ProgramError"}
    assert lanes.failures() == {0: "ProgramError", 1: "ProgramError", 2: "ProgramError"}
    assert refs.failures() == {0: "ProgramError", 1: "ProgramError"}
    assert args.failures() == {0: "ProgramError"}
    assert adapter.failures() == {1: "UnsupportedFeature"}
    assert surrogate.failures() == {1: "BackendError"}
    for program in (long, roles, nested, unopened, lanes, refs, args, adapter, surrogate):
        assert program.closed


def test_reference_into_a_failed_lane_passes_its_error_on() -> None:
    port, executor = rig(ScriptedPort(lambda r: BackendError("no luck")))
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1))
    program.send(AppendText(0, 3, (VarRef("x", 1),)), gen(4, "y"), Close())
    port.run()
    assert program.failures() == {2: "BackendError", 3: "BackendError", 4: "BackendError"}


def test_partial_text_and_meta_come_with_a_deadline() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", deadline_s=2.0), gen(2, "y"), Close())
    port.pump()
    port.now = 3.0
    port.finish("p/0/1", "half")
    port.run()
    failed = program.all(NodeFailed)
    assert [event.error["code"] for event in failed] == ["DeadlineExceeded"] * 2
    assert failed[0].text == "half" and failed[0].meta is not None
    assert failed[0].meta.finish_reason == "deadline"


def test_program_deadline_stops_later_nodes_unsubmitted() -> None:
    port, executor = rig()
    program = Program(executor, deadline_s=5.0)
    program.send(text(0, "q"), gen(1, "x"))
    port.run()
    port.now = 6.0
    program.send(gen(2, "y"), Close())
    port.run()
    assert program.failures() == {2: "DeadlineExceeded"}
    assert len(port.requests) == 1


# ---- cancel, drop, close, abandon


def test_cancel_aborts_in_the_same_slice_and_releases() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "a", lane=1), gen(3, "b", lane=2))
    program.send(gen(4, "a2", lane=1))
    port.pump()
    port.finish("p/1/2")
    assert "p/1" in port.leases
    program.send(Cancel((1,), "first one wins"), Close())
    port.pump()
    assert port.running["p/1/4"].aborted and "p/1" not in port.leases
    assert not port.running["p/2/3"].aborted
    port.run()
    assert program.failures() == {4: "Cancelled"}
    assert "first one wins" in program.all(NodeFailed)[0].error["message"]
    assert program.values() == {"a": "<a>", "b": "<b>"}
    assert program.all(Closed)[0].error is None  # what a program cancels itself is no failure


def test_cancel_of_waiting_and_unborn_lanes_ends_them_at_once() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), Fork(0, 2, (1,)), gen(3, "a", lane=1))
    program.send(Join(0, 4, (1,)), gen(5, "y"))
    port.pump()
    program.send(Cancel((1,)))
    port.pump()
    assert program.failures() == {3: "Cancelled"}
    port.finish("p/0/1")
    port.pump()
    assert program.all(JoinReady) == [JoinReady(0, 4)]
    other = Program(executor, "other")
    other.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "a", lane=1), Join(0, 3, (1,)), gen(4, "y"))
    port.pump()
    other.send(Cancel((0,)), Close())
    port.pump()
    assert other.failures() == {3: "Cancelled", 4: "Cancelled"} and not other.closed
    program.send(Close())
    port.run()
    assert other.values() == {"a": "<a>"} and other.closed and program.closed


def test_a_value_that_arrives_after_cancel_is_no_value() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", stream=True))
    port.pump()
    program.send(Cancel((0,)), Close())
    port.pump()
    port.delta("p/0/1", "late")
    port.running["p/0/1"].aborted = False
    port.run()
    assert program.failures() == {1: "Cancelled"} and program.all(TextDelta) == []


def test_drop_releases_when_the_lane_is_done_and_refuses_more() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "a", lane=1), gen(3, "b", lane=1))
    program.send(Drop((1,)))
    port.pump()
    port.finish("p/1/2")
    port.pump()
    assert "p/1" in port.leases
    port.finish("p/1/3")
    port.pump()
    assert "p/1" not in port.leases and program.values() == {"a": "<a>", "b": "<b>"}
    program.send(gen(4, "c", lane=1), Fork(0, 5, (1,)), Close())
    port.run()
    assert program.failures() == {4: "ProgramError", 5: "ProgramError"}
    assert "dropped" in program.all(NodeFailed)[0].error["message"]


def test_lanes_can_be_read_after_close_but_nothing_else_is_taken() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "hi"), gen(1, "x"), text(2, " bye"), Close())
    port.run()
    assert program.closed
    program.send(ReadLane(0, 3))
    port.run()
    assert program.lane(0).text == "hi<x> bye" and program.closed
    with pytest.raises(ProgramError, match="closed"):
        program.send(gen(4, "y"))


def test_leases_last_until_close_is_answered() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "hi"), gen(1, "x"))
    port.run()
    assert port.leases == {"p/0": plain(port, "hi", "<x>")}
    program.send(Close())
    port.run()
    assert port.leases == {} and program.closed


def test_abandon_frees_everything_and_says_nothing_more() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), gen(2, "y"))
    port.pump()
    port.finish("p/0/1")
    program.session.abandon()
    port.pump()
    seen = len(program.events)
    assert port.running["p/0/2"].aborted and port.leases == {}
    program.send(gen(3, "z"), Close())
    port.run()
    assert len(program.events) == seen and executor.stats().programs_open == 0


def test_a_failing_sink_ends_its_program_only(caplog: pytest.LogCaptureFixture) -> None:
    port, executor = rig()

    def bad(events: list[Event]) -> None:
        raise RuntimeError("broken sink")

    session = executor.open(OpenProgram(program_id="bad"), bad)
    session.send([text(0, "q"), gen(1, "x"), gen(2, "y")])
    good = Program(executor, "good")
    good.send(text(0, "q"), gen(1, "x"), Close())
    port.run()
    assert good.closed and "broken sink" in caplog.text
    assert port.leases == {} and executor.stats().programs_open == 0


def test_a_bug_in_one_program_ends_that_program_only(caplog: pytest.LogCaptureFixture) -> None:
    port, executor = rig()
    program = Program(executor, "odd")
    good = Program(executor, "good")
    program.send(text(0, "q"), gen(1, "x"), gen(2, "y"))
    good.send(text(0, "q"), gen(1, "x"), Close())
    port.pump()

    def broken(lane_id: str, ids: object, namespace: str) -> None:
        raise RuntimeError("lost the tree")

    hold, port.hold = port.hold, broken  # type: ignore[method-assign,assignment]
    port.finish("odd/0/1")
    port.hold = hold  # type: ignore[method-assign]
    port.run()
    assert program.failures() == {2: "BackendError"} and program.closed
    assert good.values() == {"x": "<x>"} and good.closed
    assert "lost the tree" in caplog.text and port.leases == {}


def test_closing_the_executor_ends_every_program() -> None:
    port, executor = rig()
    programs = [Program(executor, str(index)) for index in range(3)]
    for program in programs:
        program.send(text(0, "q"), gen(1, "x"))
    port.pump()
    executor.close()
    port.pump()
    for program in programs:
        assert program.failures() == {1: "Cancelled"} and program.closed
        error = program.all(Closed)[0].error
        assert error is not None and error["program"] == program.all(NodeFailed)[0].error["program"]
    assert len({program.all(Closed)[0].error["program"] for program in programs}) == 3  # type: ignore[index]
    port.run()


def test_program_ids_are_unique_while_running() -> None:
    port, executor = rig()
    program = Program(executor)
    with pytest.raises(ProgramError, match="id is running"):
        Program(executor)
    program.send(Close())
    port.run()
    Program(executor)
    with pytest.raises(ProgramError, match="not an op"):
        Program(executor, "q").session.send(["x"])  # type: ignore[list-item]


def test_a_static_graph_runs_without_python() -> None:
    port, executor = rig()
    builder = GraphBuilder("tip", ["topic"])
    builder.add(AppendText(0, 0, ("About ", ArgRef("topic"), ": ")))
    builder.add(gen(1, "tip"))
    builder.add(Fork(0, 2, (1, 2)))
    builder.add(AppendText(1, 3, ("more on ", VarRef("tip", 1))))
    builder.add(gen(4, "more", lane=1))
    builder.add(Join(0, 5, (1, 2), "append"))
    events: list[Event] = []
    executor.run_graph(
        builder.build(), {"topic": "sleep"}, OpenProgram(program_id="g"), events.extend
    )
    port.run()
    assert [e.texts[0] for e in events if isinstance(e, ValueReady)] == ["<tip>", "<more>"]
    assert port.requests[0].prompt_ids == plain(port, "About sleep: ")
    assert isinstance(events[-1], Closed)


def test_stats_of_all_nodes_are_reported_once() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "abcd"), gen(1, "x"), text(2, "e"), Fork(0, 3, (1,)), Close())
    port.run()
    stats = [s for e in program.all(ValueReady) for s in e.stats]
    stats += [s for e in program.all(Closed) for s in e.stats]
    assert [item.node for item in stats] == [0, 1, 2, 3]
    assert [item.tokens for item in stats] == [2, 3, 1, 0]
    assert [item.lane_tokens for item in stats] == [2, 5, 6, 6]
    assert stats[1].cached_tokens == 1 and SAMPLING.n == 1


def test_executor_takes_ops_from_many_threads() -> None:
    port, executor = rig()
    programs = [Program(executor, str(index)) for index in range(40)]

    def work(mine: list[Program]) -> None:
        for program in mine:
            for node in range(10):
                program.send(text(2 * node, f"{node}"), gen(2 * node + 1, f"x{node}"))
            program.send(Close())

    threads = [threading.Thread(target=work, args=(programs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    port.run()
    assert all(program.closed and len(program.values()) == 10 for program in programs)
    assert isinstance(executor, Executor) and port.leases == {}
