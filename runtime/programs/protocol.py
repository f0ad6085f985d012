"""Messages between a running program and the executor: ops go down, events come up.

The same messages serve a program in this process and one at the other end of a socket, so they are
msgpack with a schema, and carry only what is new. A program numbers its own lanes (0 is the root)
and nodes (increasing). Ops of one lane are executed in order; lanes run independently.

Rules of failure: when a node fails, `NodeFailed` is sent for it and for every later value node of
its lane and of lanes forked from it, with the first error; nothing waits forever. Value nodes are
generate, select and join; a failing node of another kind is named by a `NodeFailed` of its own. A
lane forked before the failure is not touched. `Close` is answered by exactly one `Closed`, after
everything that was sent before has ended.

Rules of text: all text appended to a lane between two other ops of that lane is tokenized as one
text; what stands before it is frozen. A lane that starts with a value gets a start token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from branchline.runtime.core.outputs import RequestMeta, TokenLogprob
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.responses import ToolSpec, ToolUse

SelectMethod = Literal[
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "total",
]
Role = str


class VarRef(msgspec.Struct, frozen=True, tag="var"):
    """The text of variable `name` as lane `lane` knows it; in graphs that run without Python."""

    name: str
    lane: int = 0


class ArgRef(msgspec.Struct, frozen=True, tag="arg"):
    """The text of the program's argument `name`; bound when a graph is run."""

    name: str


Part = str | VarRef | ArgRef
"""A piece of appended text: literal, or text known only at run time."""


class AppendText(msgspec.Struct, frozen=True, tag="text"):
    """Append text. Special-token strings in it are plain text.

    A `VarRef` into another lane waits until that lane has run the ops sent before this one.
    """

    lane: int
    node: int
    parts: tuple[Part, ...]


class BeginRole(msgspec.Struct, frozen=True, tag="begin"):
    """Open a chat turn by the model's own template."""

    lane: int
    node: int
    role: Role


class EndRole(msgspec.Struct, frozen=True, tag="end"):
    """Close the open turn; its tokens are frozen from here on."""

    lane: int
    node: int


class DeclareTools(msgspec.Struct, frozen=True, tag="tools"):
    """Tell the model of tools; those that the lane knows already are passed by.

    By the model's own template in the lane's first turn, if no request, read or fork came before;
    else in a turn of their own, before the one that is about to open. Where there are no turns, as
    text.
    """

    lane: int
    node: int
    tools: tuple[ToolSpec, ...]


class Generate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="gen"):
    """Continue the lane and store the text under `name`.

    With `sampling.n` > 1 all texts are reported and the lane goes on with the first.

    Attributes:
        sampling: max_tokens None = to the end of the context.
        stream: send `TextDelta`s.
        tools: the output is text or calls of these, as the model writes calls; the backend
            constrains and reads it. `sampling` then has no constraint of its own.
        deadline_s: seconds from the moment the node can run.
        reasoning: whether the model thinks first; None = where its template means it to. A str
            names the format, for models whose template does not say.
        heal: whether the seam to the text before is tokenized as one with the output; None = for
            constrained outputs outside of chat turns.
        adapter: name of the adapter that writes it; "" = the base model.
    """

    lane: int
    node: int
    name: str
    sampling: SamplingParams
    tools: ToolUse | None = None
    stream: bool = False
    reasoning: bool | str | None = None
    heal: bool | None = None
    deadline_s: float | None = None
    priority: int = 0
    adapter: str = ""


class Select(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="select"):
    """Score every choice after the lane's tokens and append the best.

    Attributes:
        choices: texts; names of those that are constraints.
        constraints: of each choice, None for a text; empty = all are texts. See `selecting`.
        max_tokens: of a choice that is a constraint.
        baseline: prompt whose scores are taken off; None = as the method has it.
        adapter: name of the adapter that decodes and scores; "" = the base model.
    """

    lane: int
    node: int
    name: str
    choices: tuple[str, ...]
    constraints: tuple[Constraint | None, ...] = ()
    max_tokens: int = 128
    method: SelectMethod = "token_length_normalized"
    baseline: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    deadline_s: float | None = None
    priority: int = 0
    adapter: str = ""


class SetVariable(msgspec.Struct, frozen=True, tag="set"):
    """Give variable `name` a text (so that a `VarRef` to it can be resolved)."""

    lane: int
    node: int
    name: str
    text: str


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Create lanes that start with all tokens and variables of `lane`."""

    lane: int
    node: int
    children: tuple[int, ...]


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Wait until `children` have run the ops sent before this one.

    "append": append what each has added since its fork, in order; a failed child fails the join.
    """

    lane: int
    node: int
    children: tuple[int, ...]
    mode: Literal["gather", "append"] = "gather"


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """These lanes take no more ops; their leases end when their ops have."""

    lanes: tuple[int, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End these lanes now: running requests are aborted, later nodes fail with `Cancelled`.

    Lanes already forked from them go on. A cancel is no error of the program in `Closed`.
    """

    lanes: tuple[int, ...]
    reason: str = "cancelled"


class ReadLane(msgspec.Struct, frozen=True, tag="read"):
    """Ask for the lane's exact tokens and text, once its earlier ops are done.

    A failed lane answers with what it held before the failure.
    """

    lane: int
    node: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """No more ops but `ReadLane` and `Cancel`. Leases end when everything has run."""


Op = (
    AppendText
    | BeginRole
    | EndRole
    | DeclareTools
    | Generate
    | Select
    | SetVariable
    | Fork
    | Join
    | Drop
    | Cancel
    | ReadLane
    | Close
)


class OpenProgram(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="open"):
    """First message of a program.

    Attributes:
        name: for errors, logs and the trace.
        deadline_s: seconds for the whole program.
    """

    program_id: str
    name: str = ""
    priority: int = 0
    deadline_s: float | None = None
    namespace: str = ""


class NodeStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one node did. Times are seconds since the program was opened.

    Attributes:
        tokens: tokens the node added to its lane (of texts joined into one, at the first).
        lane_tokens: tokens of the lane after the node.
        cached_tokens, forced_tokens, accepted_tokens, forwards: see `RequestMeta`.
    """

    node: int
    start_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0
    lane_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forwards: int = 0
    ttft_s: float = 0.0


class TextDelta(msgspec.Struct, frozen=True, tag="delta"):
    """New text of a streaming node; of one with tools, what belongs to no call."""

    lane: int
    node: int
    name: str
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, tag="reasoning"):
    """New text of a streaming node's reasoning, before its answer."""

    lane: int
    node: int
    name: str
    text: str


class ChoiceScore(msgspec.Struct, frozen=True):
    """One choice of a `Select`.

    Attributes:
        text: of a choice that is a constraint, the text that was found for it.
        logprob: sum over its tokens (natural log); -inf where no text was found.
        probability: normalised over the choices by the method's own score.
    """

    text: str
    logprob: float
    token_logprobs: tuple[float, ...]
    probability: float


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an output holds. `arguments`: a JSON object, valid for the tool."""

    id: str
    name: str
    arguments: str


class ToolReply(msgspec.Struct, frozen=True):
    """What an output of a node with tools says.

    Attributes:
        text: all that is no call.
        reasoning: what the format of calls itself marks as such.
        cut: the output ended inside a call.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    cut: bool = False


class CallMade(msgspec.Struct, frozen=True, tag="call"):
    """A streaming node has written a whole call."""

    lane: int
    node: int
    name: str
    call: ToolCall


class ValueReady(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="value"):
    """A generate or select node has its value.

    Attributes:
        texts: one text, or n of them (`meta` then counts the outputs of all).
        choices: scores of a select, in the order given.
        taken: index of the choice taken.
        reasoning: what the model thought before each of `texts`; empty where it did not.
        replies: of a node with tools, one for each text.
        stats: of this and of earlier nodes not reported yet.
    """

    lane: int
    node: int
    name: str
    texts: tuple[str, ...]
    meta: RequestMeta
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: tuple[ChoiceScore, ...] = ()
    taken: int = -1
    reasoning: tuple[str, ...] = ()
    replies: tuple[ToolReply, ...] = ()
    stats: tuple[NodeStats, ...] = ()


class NodeFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """A node has no value. `text` is what had been generated (readable in the variable's meta)."""

    lane: int
    node: int
    name: str
    error: dict[str, Any]
    text: str = ""
    meta: RequestMeta | None = None


class JoinReady(msgspec.Struct, frozen=True, tag="joined"):
    """All children of a join have run their ops."""

    lane: int
    node: int


class LaneContent(msgspec.Struct, frozen=True, tag="lane"):
    """Answer to `ReadLane`: exact ids held, and their text with template markup.

    A start token that the lane was given has no text.
    """

    lane: int
    node: int
    token_ids: tuple[int, ...]
    text: str


class Closed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="closed"):
    """Everything has run. `error` is the first error of the program, if any."""

    error: dict[str, Any] | None = None
    stats: tuple[NodeStats, ...] = ()


Event = (
    TextDelta
    | ReasoningDelta
    | CallMade
    | ValueReady
    | NodeFailed
    | JoinReady
    | LaneContent
    | Closed
)

ENGINE_FEATURES = frozenset(
    {
        "select",
        "roles",
        "fork",
        "tokens",
        "tools",
        "logprobs",
        "seed",
        "top_k",
        "min_p",
        "logit_bias",
    }
    | {"repetition_penalty", "min_tokens", "stop_token_ids", "stop_regex", "keep_stop"}
    | {"ignore_eos"}
    | {"reasoning", "heal", "adapter"}
    | {"regex", "choices", "json_schema", "lark", "ebnf", "structural_tag"}
)
"""What the project's own engine can do, in this process or behind a server."""

Sink = Callable[[list[Event]], None]
"""Takes events, in order, on the backend's thread; must return at once and never raise."""


class Session(Protocol):
    """One open program."""

    def send(self, ops: list[Op]) -> None:
        """Hand over ops; callable from any thread, never blocks."""

    def abandon(self) -> None:
        """The program is gone: cancel what runs, free everything, send nothing more."""


class ProgramBackend(Protocol):
    """Anything that can run programs: engine, endpoint, mock, OpenAI-compatible server.

    Attributes:
        name: for messages.
        features: optional things it can do: "select", "roles", "fork", "tokens", "tools",
            "adapter", the kinds of constraints, and the sampling options that not every server
            has.
    """

    name: str
    features: frozenset[str]

    def open(self, program: OpenProgram, sink: Sink) -> Session: ...

    def flush_cache(self) -> None: ...

    def info(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
