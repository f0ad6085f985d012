"""Objects as rules. Invariant: each name of a shape at most once; no choice leads to a dead end.

Where a count, a dependency between names or a witness must be kept, the rules carry a number
(the engine's parametric rules), else they are a plain chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from branchline.runtime.grammar.json_schema.clauses import Settled, close, last_name, settle
from branchline.runtime.grammar.json_schema.document import unsupported
from branchline.runtime.grammar.json_schema.lark import (
    REGISTER_BITS,
    Register,
    all_of,
    one_of,
    repeated,
    stepped,
    when,
)
from branchline.runtime.grammar.json_schema.sets import Clause, State, Texts
from branchline.runtime.grammar.json_schema.shapes import Region, Shape

if TYPE_CHECKING:
    from branchline.runtime.grammar.json_schema.printer import Printer

_MOST_COUNT = 4095
_MOST_SPLITS = 6
MOST_ANY_ORDER = 256


class _Plan(NamedTuple):
    """A shape without what cannot be. Required names are not counted in `least` and `most`."""

    names: tuple[tuple[str, State, bool], ...]
    regions: tuple[Region, ...]
    witnesses: tuple[tuple[Region, ...], ...]
    clauses: frozenset[Clause]
    least: int
    most: int | None

    @property
    def entangled(self) -> bool:
        """Whether names could leave too little room for others, or too few of them."""
        if self.most is not None and any(has for clause in self.clauses for _, has in clause):
            return True
        return self.least > 0 and not self.regions and bool(self.clauses)


class ObjectPrinter:
    """Writes the objects of a printer's grammar."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._settled: dict[tuple[frozenset[Clause], frozenset[str]], Settled | None] = {}

    def has_values(self, shape: Shape) -> bool:
        """Whether an object can have the shape, as far as its parts are known to have values."""
        return bool(self._plans(shape))

    def _plans(self, shape: Shape, left: int = _MOST_SPLITS) -> list[_Plan]:
        """Ways to write a shape; none of them where it has no values.

        Where names depend on each other and are counted, too, they are decided here: a plan looks
        at one or the other when it comes to a name.
        """
        plan = self._plan(shape)
        if plan is None or not plan.entangled:
            return [] if plan is None else [plan]
        if not left:
            keyword = "minProperties" if plan.most is None else "maxProperties"
            raise unsupported(keyword, "#", "its names depend on each other in too many ways")
        name = min(name for clause in plan.clauses for name, _ in clause)
        return [
            one
            for has in (True, False)
            for one in self._plans(
                shape._replace(clauses=shape.clauses | {frozenset({(name, has)})}), left - 1
            )
        ]

    def _plan(self, shape: Shape) -> _Plan | None:
        has = self._printer.has_values
        absent = frozenset(name for name, state in shape.names if not has(state))
        clauses = shape.clauses
        while True:
            key = (clauses, absent)
            if key not in self._settled:
                self._settled[key] = settle(clauses, absent)
            settled = self._settled[key]
            if settled is None:
                return None
            closed = close(settled.open) if settled.open else settled.open
            if closed is None:
                why = "its names depend on each other in too many ways"
                raise unsupported("dependencies", "#", why)
            if all(len(clause) > 1 for clause in closed):
                break
            clauses |= closed
        names = tuple(
            (name, state, name in settled.present)
            for name, state in shape.names
            if name not in settled.absent
        )
        regions = tuple(region for region in shape.regions if has(region[1]))
        witnesses = tuple(
            tuple(region for region in one if has(region[1])) for one in shape.witnesses
        )
        if not all(witnesses):
            return None
        fixed = sum(required for _, _, required in names) + len(witnesses)
        optional = len(names) + len(witnesses) - fixed
        least = max(shape.least - fixed, 0)
        most = None if shape.most is None else shape.most - fixed
        if (most is not None and most < 0) or (not regions and least > optional):
            return None
        if most is not None and not regions and most >= optional:
            most = None
        return _Plan(names, regions, witnesses, closed, least, most)

    def options(self, shape: Shape) -> list[str]:
        """Rule bodies of a shape with values."""
        return [self._option(plan) for plan in self._plans(shape)]

    def _option(self, plan: _Plan) -> str:
        grammar = self._printer.grammar
        if max(plan.least, plan.most or 0) > _MOST_COUNT:
            if plan.most is None or plan.least > _MOST_COUNT:
                raise unsupported("minProperties", "#", f"it is more than {_MOST_COUNT}")
            raise unsupported("maxProperties", "#", f"it is more than {_MOST_COUNT}")
        counted = plan.least > 0 or plan.most is not None or plan.clauses or plan.witnesses
        any_order = (
            grammar.layout.any_order
            and len(plan.names) + bool(plan.regions) > 1
            and _in_line(plan) is not None
        )
        if not plan.names and plan.regions and not plan.witnesses:
            return f"{grammar.open_object} {self._map(plan)}"
        if any_order:
            return f"{grammar.open_object} {_Loose(self._printer, plan).start()}"
        if counted:
            return f"{grammar.open_object} {_Counted(self._printer, plan).start()}"
        return f"{grammar.open_object} {self._chain(plan)}"

    def _map(self, plan: _Plan) -> str:
        """Any names, none of them listed."""
        grammar = self._printer.grammar
        pair = self._pairs(plan.regions)
        least, most = max(plan.least - 1, 0), None if plan.most is None else plan.most - 1
        if most is not None and most < 0:
            return grammar.close_object
        rest = repeated(f"{grammar.comma} {pair}", least, most)
        some = f"{pair} {rest} {grammar.close_object}"
        return grammar.rule([*([grammar.close_object] if plan.least == 0 else []), some])

    def _pairs(self, regions: tuple[Region, ...]) -> str:
        options = [f"{key} {value}" for key, value in pairs_of(self._printer, regions)]
        return self._printer.grammar.rule(options)

    def _chain(self, plan: _Plan) -> str:
        """Names in order, each required or not, then others."""
        grammar = self._printer.grammar
        after, first = grammar.close_object, [grammar.close_object]
        if plan.regions:
            pair = self._pairs(plan.regions)
            after = f"({grammar.comma} {pair})* {grammar.close_object}"
            first.append(f"{pair} {after}")
        for name, state, required in reversed(plan.names):
            pair = f"{self._printer.key(name)} {self._printer.symbol(state)}"
            if not required and len(after) > _LONG:
                after = grammar.rule([after])
            first = [f"{pair} {after}", *([] if required else first)]
            if len(first) > 2:
                first = [first[0], grammar.rule(first[1:])]
            if required:
                after = f"{grammar.comma} {pair} {after}"
            else:
                after = grammar.rule([f"{grammar.comma} {pair} {after}", after])
        return first[0] if len(first) == 1 else grammar.rule(first)


_LONG = 60


def pairs_of(printer: Printer, regions: tuple[Region, ...]) -> list[tuple[str, str]]:
    """(key, value) symbols of each region."""
    return [(printer.keys(Texts(language)), printer.symbol(state)) for language, state in regions]


class _Step(NamedTuple):
    """A property and what follows it, and the conditions under which it may come."""

    text: str
    conditions: list[str]


class _Numbered:
    """What both kinds of rules that carry a number share."""

    def __init__(self, printer: Printer, plan: _Plan) -> None:
        self._printer = printer
        self._grammar = printer.grammar
        self._plan = plan
        self._register = Register()
        self._bits: dict[str, int] = {}
        self._extra = pairs_of(printer, plan.regions)
        self._witnesses = [pairs_of(printer, one) for one in plan.witnesses]
        self._seen = [self._bit() for _ in plan.witnesses]
        self._count = ""
        if plan.least or plan.most is not None:
            field = self._register.field(max(plan.least, plan.most or 0))
            self._count = field if field is not None else self._full()

    def _full(self) -> str:
        raise unsupported("dependencies", "#", "too many names depend on each other")

    def _bit(self) -> int:
        bit = self._register.bit()
        if bit is None:
            self._full()
        return bit or 0

    def _has(self, name: str, has: bool) -> str:
        return f"bit_{'set' if has else 'clear'}({self._bits[name]})"

    def _any(self, clause: Clause) -> str:
        return one_of([self._has(*literal) for literal in sorted(clause)])

    def _room(self) -> list[str]:
        return [] if self._plan.most is None else [f"lt({self._count}, {self._plan.most})"]

    def _counted(self) -> list[str]:
        return [f"incr({self._count})"] if self._count else []

    def _end(self) -> list[str]:
        enough = [f"ge({self._count}, {self._plan.least})"] if self._plan.least else []
        return [*enough, *(f"bit_set({bit})" for bit in self._seen)]

    def _others(self, target: str, after: Sequence[str] = ()) -> list[_Step]:
        """Names outside the list, where conditions hold."""
        steps = []
        for bit, pairs in zip(self._seen, self._witnesses, strict=True):
            for pair in pairs:
                text = stepped(self._grammar, pair, target, [f"set_bit({bit})"])
                steps.append(_Step(text, [*after, f"bit_clear({bit})"]))
        for pair in self._extra:
            text = stepped(self._grammar, pair, target, self._counted())
            steps.append(_Step(text, [*after, *self._room()]))
        return steps

    def _loop(self, last: str, steps: list[_Step], more: list[str], end: list[str]) -> str:
        """Define the rule `last` of what follows a property: a comma and a step, or the end.

        Args:
            more: one of these holds where one of the steps may come: behind a comma there is no
                way back.
            end: all of these hold where the object may end.

        Returns:
            the rule of the steps; "" where there are none.
        """
        grammar, options, item = self._grammar, [], ""
        if steps:
            texts = [step.text + when(step.conditions) for step in steps]
            item = grammar.rule(texts, counting=True)
            sure = any(not step.conditions for step in steps)
            options.append(f"{grammar.comma} {item}::_{'' if sure else when([one_of(more)])}")
        options.append(f"{grammar.close_object}{when(end)}")
        grammar.define(last, options, counting=True)
        return item


class _Counted(_Numbered):
    """Names in order."""

    def start(self) -> str:
        """The reference that begins the object's inside."""
        plan, grammar = self._plan, self._grammar
        for name in dict.fromkeys(name for clause in plan.clauses for name, _ in clause):
            self._bits[name] = self._bit()
        last = grammar.new_rule()
        steps, end = self._others(last), self._end()
        more = [all_of(step.conditions) for step in steps if step.conditions]
        item = self._loop(last, steps, more, end)
        close_it = f"{grammar.close_object}{when(end)}"
        first = grammar.rule([*([f"{item}::_"] if item else []), close_it], counting=True)
        order = [name for name, _, _ in plan.names]
        left = 0
        for name, state, required in reversed(plan.names):
            pair = [self._printer.key(name), self._printer.symbol(state)]
            changes = [f"set_bit({self._bits[name]})"] if name in self._bits else []
            changes += [] if required else self._counted()
            with_it = stepped(grammar, pair, last, changes)
            room = [] if required else self._room()
            take = when([*room, *self._decided(order, name, True)])
            skip = self._decided(order, name, False)
            if plan.least > left and not plan.regions:
                skip.append(f"ge({self._count}, {plan.least - left})")
            rest = [] if required else [f"{last}::_{when(skip)}"]
            first_rest = [] if required else [f"{first}::_{when(skip)}"]
            first = grammar.rule([f"{with_it}{take}", *first_rest], counting=True)
            last = grammar.rule([f"{grammar.comma} {with_it}{take}", *rest], counting=True)
            left += not required
        return f"{first}::0"

    def _decided(self, order: list[str], name: str, has: bool) -> list[str]:
        """What must hold of the names before for this one to be taken, or left out."""
        conditions = []
        for clause in self._plan.clauses:
            if (name, has) in clause or last_name(clause, order) != name:
                continue
            conditions.append(self._any(clause - {(name, not has)}))
        return conditions


def _in_line(plan: _Plan) -> list[str] | None:
    """Names that must keep the order of the schema, as few as can be, for the others to have a bit
    of the register each; None where too many must."""
    room = REGISTER_BITS - len(plan.witnesses)
    counted = plan.least > 0 or plan.most is not None
    if counted:
        room -= max(plan.least, plan.most or 1).bit_length()
    if len(plan.names) <= room:
        return []
    if counted or len(plan.names) > MOST_ANY_ORDER:
        return None
    tied = {name for clause in plan.clauses for name, _ in clause}
    idle = [name for name, _, required in plan.names if not required and name not in tied]
    for bits in range(2, len(idle).bit_length() + 1):
        found = idle[1 - (1 << bits) :]
        if len(plan.names) - len(found) + bits <= room:
            return found
    return None


class _Loose(_Numbered):
    """Names in any order, except that some are in line: the last ones, each of which comes only
    where none behind it was."""

    def start(self) -> str:
        """The rule of the object's inside."""
        plan, grammar = self._plan, self._grammar
        barred = {
            name: [
                clause - {(name, False)}
                for clause in plan.clauses
                if (name, False) in clause and not any(has for _, has in clause)
            ]
            for name, _, _ in plan.names
        }
        line = _in_line(plan) or []
        required = [name for name, _, needed in plan.names if needed]
        limited = [name for name in barred if barred[name]]
        free = [name for name in barred if name not in {*required, *limited, *line}]
        for name in (*required, *free, *limited):
            self._bits[name] = self._bit()
        placed = self._placed(line)
        rule, room, needed = grammar.new_rule(), self._room(), self._all(required)
        steps: dict[str, _Step] = {}
        for name, state, needs in plan.names:
            if name in placed:
                take, changes = placed[name]
            else:
                take = [self._has(name, False), *([] if needs else room)]
                take += [self._any(clause) for clause in barred[name]]
                changes = [f"set_bit({self._bits[name]})", *([] if needs else self._counted())]
            pair = (self._printer.key(name), self._printer.symbol(state))
            steps[name] = _Step(stepped(grammar, pair, rule, changes), take)
        others = self._others(rule, needed)
        more = [f"not({one})" for one in self._all(required)]
        more += [all_of([f"not({one})", *room]) for one in self._all(free)]
        special = [*(steps[name] for name in (*limited, *line[-1:])), *others]
        more += [all_of(step.conditions) for step in special if step.conditions]
        wanted = [self._any(clause) for clause in sorted(plan.clauses, key=sorted)]
        item = self._loop(rule, [*steps.values(), *others], more, [*needed, *self._end(), *wanted])
        absent = all(any(not has for _, has in clause) for clause in plan.clauses)
        empty = absent and not (required or plan.least or plan.witnesses)
        return grammar.rule([f"{item}::0", *([grammar.close_object] if empty else [])])

    def _placed(self, line: list[str]) -> dict[str, tuple[list[str], list[str]]]:
        """Of names in line, when they may come and what changes: the place of the last one."""
        if not line:
            return {}
        start = self._register.width
        place = self._register.field(len(line)) or self._full()
        others = (1 << REGISTER_BITS) - (1 << self._register.width) + (1 << start) - 1
        return {
            name: ([f"lt({place}, {at})"], [f"bit_and({others})", f"bit_or({at << start})"])
            for at, name in enumerate(line, 1)
        }

    def _all(self, names: list[str]) -> list[str]:
        """That names whose bits lie side by side are all there."""
        return [f"is_ones([{self._bits[names[0]]}:{self._bits[names[-1]] + 1}])"] if names else []
