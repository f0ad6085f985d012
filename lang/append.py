"""What appending does: expressions become ops of the state's lane. One function a node kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from branchline.lang import names
from branchline.lang.errors import (
    BranchlineError,
    NameInUse,
    ProgramError,
    UnsupportedConstraint,
)
from branchline.lang.expressions import (
    Concat,
    Gen,
    Node,
    ProgramCall,
    Reference,
    RoleBegin,
    RoleEnd,
    RoleTurn,
    Select,
    Text,
    as_expression,
)
from branchline.lang.sampling import build, features_of, output_options, request_options
from branchline.lang.tools import CALL_DEFAULTS, ToolBox
from branchline.lang.transcript import RoleMark
from branchline.lang.types import TEXT, ValueType, resolve
from branchline.lang.variables import Captured, Slot, Thought
from branchline.runtime.programs import protocol

if TYPE_CHECKING:
    from branchline.lang.state import State


def append(state: State, value: object) -> None:
    """Append a str, an expression or a list of them; never waits.

    Raises:
        ProgramError: a rule of the language was broken.
        InvalidRequest: an option is out of range.
        UnsupportedConstraint, UnsupportedFeature: the backend cannot do it.
    """
    _append_node(state, as_expression(value))


def _append_node(state: State, node: Node) -> None:
    try:
        _APPEND[type(node)](state, node)
    except BranchlineError as error:
        name = node.name if isinstance(node, (Gen, Select)) else None
        error.located(program=state._run.name, variable=name or "")
        raise


def _text(state: State, node: Text) -> None:
    if node.text:
        _append_parts(state, (node.text,), node.text)


def _append_parts(state: State, parts: tuple[protocol.Part, ...], shown: str) -> None:
    run = state._run
    state._transcript.pieces.append(shown)
    run.emit(protocol.AppendText(state._lane, run.next_node(), parts))


def _reference(state: State, node: Reference) -> None:
    _texts(state, [node])


def _part(state: State, node: Reference) -> protocol.Part:
    """Text a tracing run has only a name for."""
    if not state._run.tracing:
        raise ProgramError(
            "a placeholder of a traced program reached a running one",
            value=node.name,
            hint="Do not keep values that a traced program has read.",
        )
    state._run.depends(node)
    if not node.exact:
        return f"{{{node.name}}}"  # what Python made of it cannot be referred to
    if node.argument:
        return protocol.ArgRef(node.name)
    return protocol.VarRef(node.name, lane=node.lane)


def _concat(state: State, node: Concat) -> None:
    """Neighbouring texts become one op, so that a traced program has the nodes of a running one."""
    texts: list[Text | Reference] = []
    for part in node.parts:
        if isinstance(part, (Text, Reference)):
            texts.append(part)
            continue
        _texts(state, texts)
        texts = []
        _append_node(state, part)
    _texts(state, texts)


def _texts(state: State, nodes: list[Text | Reference]) -> None:
    if all(isinstance(node, Text) for node in nodes):
        _text(state, Text("".join(node.text for node in nodes if isinstance(node, Text))))
        return
    parts: list[protocol.Part] = []
    for node in nodes:
        if isinstance(node, Reference):
            parts.append(_part(state, node))
        elif node.text:
            parts.append(node.text)
    shown = "".join(n.text if isinstance(n, Text) else f"{{{n.name}}}" for n in nodes)
    _append_parts(state, tuple(parts), shown)


def _role_begin(state: State, node: RoleBegin) -> None:
    state._need("roles", "chat roles")
    transcript = state._transcript
    if transcript.role:
        raise ProgramError(
            f"a turn of {node.role!r} begins inside one of {transcript.role!r}",
            program=state._run.name,
            value=node.role,
            hint="End a turn before the next one begins.",
        )
    transcript.role = node.role
    transcript.pieces.append(RoleMark(node.role))
    run = state._run
    run.emit(protocol.BeginRole(state._lane, run.next_node(), node.role))


def _role_end(state: State, node: RoleEnd) -> None:
    transcript = state._transcript
    if transcript.role != node.role:
        is_open = f"a turn of {transcript.role!r} is open" if transcript.role else "none is open"
        raise ProgramError(
            f"a turn of {node.role!r} is ended, but {is_open}",
            program=state._run.name,
            value=node.role,
            hint="Begin and end turns in pairs.",
        )
    transcript.role = ""
    transcript.pieces.append(RoleMark(""))
    run = state._run
    run.emit(protocol.EndRole(state._lane, run.next_node()))


def _role_turn(state: State, node: RoleTurn) -> None:
    _role_begin(state, RoleBegin(node.role))
    _append_node(state, node.body)
    _role_end(state, RoleEnd(node.role))


def _program_call(state: State, node: ProgramCall) -> None:
    call: Any = node.call.value
    call.program.run_inline(state, call.args, call.kwargs)


def _gen(state: State, node: Gen) -> None:
    run = state._run
    options = node.options
    kind = resolve(None if node.type is None else node.type.value)
    _need_constraint(state, kind)
    box = _tools_of(node)
    layers = (*state._defaults, options)
    sampling = build(layers if box is None else (CALL_DEFAULTS, *layers), kind.constraint)
    for feature in features_of(sampling):
        state._need(feature, f"the option {feature!r}")
    output = output_options(layers)
    for feature, value in output.items():
        if value:
            state._need(feature, f"the option {feature!r}")
    name = names.claim(state, node.name, append=node.append)
    if name in kind.captures:
        raise NameInUse(
            f"a capture has the name of its variable, {name!r}",
            program=run.name,
            variable=name,
            hint="Give the capture another name.",
        )
    captures = [names.claim(state, each, append=node.append) for each in kind.captures]
    if box is not None:
        _declare(state, box)
    slot = _new_slot(state, name, kind, append=node.append)
    slot.tools = box
    for each in captures:
        names.define(state, each, Captured(slot, each), append=node.append)
    if node.keep_reasoning:
        thought = names.claim(state, f"{name}_reasoning_content", append=node.append)
        names.define(state, thought, Thought(slot), append=node.append)
    run.emit(
        protocol.Generate(
            lane=state._lane,
            node=slot.node,
            name=name,
            sampling=sampling,
            tools=None if box is None else box.use,
            stream=run.streaming,
            **output,
            **_request_options(state, options),
        ),
        start=True,
    )


def _need_constraint(state: State, kind: ValueType | None) -> None:
    """Raise `UnsupportedConstraint` where the backend cannot enforce it."""
    constraint = None if kind is None else kind.constraint
    backend = state._run.backend
    if kind is not None and constraint is not None and constraint.kind not in backend.features:
        raise UnsupportedConstraint(
            f"backend {backend.name!r} cannot enforce a {constraint.kind} constraint",
            value=kind.name,
            hint="Use another backend.",
        )


def _tools_of(node: Gen) -> ToolBox | None:
    value = None if node.tools is None else node.tools.value
    assert value is None or isinstance(value, ToolBox)
    return value


def _declare(state: State, box: ToolBox) -> None:
    """Have the model told of tools that this lane does not know yet."""
    state._need("tools", "tools")
    run = state._run
    new = tuple(spec for spec in box.use.tools if spec not in state._told)
    if new:
        state._told += new
        run.emit(protocol.DeclareTools(state._lane, run.next_node(), new))


def _select(state: State, node: Select) -> None:
    run = state._run
    state._need("select", "select")
    kinds = [None if box is None else resolve(box.value) for box in node.types]
    for kind in kinds:
        _need_constraint(state, kind)
    name = names.claim(state, node.name, append=node.append)
    slot = _new_slot(state, name, TEXT, append=node.append)
    slot.branches = tuple([kind or TEXT for kind in kinds])
    run.emit(
        protocol.Select(
            lane=state._lane,
            node=slot.node,
            name=name,
            choices=node.choices,
            constraints=tuple([None if kind is None else kind.constraint for kind in kinds]),
            max_tokens=node.max_tokens,
            baseline=node.baseline,
            method=node.method,
            temperature=node.temperature,
            seed=node.options.get("seed"),
            **_request_options(state, node.options),
        ),
        start=True,
    )


def _new_slot(state: State, name: str, kind: Any, *, append: bool) -> Slot:
    run = state._run
    slot = run.new_slot(name, state._lane, run.next_node(), kind)
    names.define(state, name, slot, append=append)
    state._transcript.pieces.append(slot)
    return slot


def _request_options(state: State, options: dict[str, Any]) -> dict[str, Any]:
    """Adapter, deadline and priority; the ones given at the call, then the program's."""
    found = request_options((*state._defaults, options))
    if found.get("adapter"):
        state._need("adapter", "adapters")
    return found


_APPEND: dict[type, Callable[[State, Any], None]] = {
    Text: _text,
    Gen: _gen,
    Select: _select,
    Reference: _reference,
    RoleBegin: _role_begin,
    RoleEnd: _role_end,
    RoleTurn: _role_turn,
    Concat: _concat,
    ProgramCall: _program_call,
}
