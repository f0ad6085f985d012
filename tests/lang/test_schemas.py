"""Types as JSON: strict schemas, instances back, and refusals that name the place."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import re
import uuid
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang import types
from branchline.lang.plain import DATE_PATTERN, DATETIME_PATTERN, TIME_PATTERN
from branchline.lang.schemas import document
from tests.lang import typed_values
from tests.lang.typed_values import Address, Colour, Movie, Node, Order, Person, Point


class Scale(enum.Enum):
    WHOLE = 1
    HALF = 0.5


RELAXED = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@RELAXED
@given(st.data())
def test_an_instance_written_as_json_comes_back_equal(data: st.DataObject) -> None:
    wanted, values = data.draw(typed_values.pairs)
    value = data.draw(values)
    raw = typed_values.plain(value)
    found = document(wanted)
    jsonschema.Draft202012Validator(found.schema).validate(raw)
    back = types.resolve(list[wanted]).value(json.dumps([raw]), truncated=False)[0]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (list[int], "[1, -2]", [1, -2]),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (dict, '{"a": [1, null]}', {"a": [1, None]}),
        (int | None, "null", None),
        (int | float, "3", 3),
        (float | int, "3", 3),
        (datetime.date | str, '"2024-02-29"', datetime.date(2024, 2, 29)),
        (str | datetime.date, '"2023-02-29"', "2023-02-29"),
        (Address | Point, '{"x": 1}', Point(1)),
        (Movie | Address, '{"street": "s", "zip": "12345"}', Address("s", "12345")),
        (Literal["a", 1] | None, "1", 1),
        (list[Colour], '["red", 2]', [Colour.RED, Colour.DARK]),
        (list[Scale], "[1.0, 1, 0.5]", [Scale.WHOLE, Scale.WHOLE, Scale.HALF]),
        (Person, '{"name": "x", "age": 3, "born": "2020-02-29"}',
         Person("x", 3, datetime.date(2020, 2, 29))),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(1, [Node(2)])),
        (Order, '{"id": "12345678-1234-5678-1234-567812345678", "items": ["tea"]}',
         Order(id=uuid.UUID("12345678-1234-5678-1234-567812345678"), items=["tea"])),
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (datetime.time, "12:30:00Z", datetime.time(12, 30, tzinfo=datetime.UTC)),
        (datetime.datetime, "2024-02-29T12:30:00", datetime.datetime(2024, 2, 29, 12, 30)),
        (uuid.UUID, "12345678-1234-5678-1234-567812345678",
         uuid.UUID("12345678-1234-5678-1234-567812345678")),
        ({"type": "integer"}, "3", 3),
        (Annotated[int, pydantic.Field(ge=3)], "3", 3),
        (tuple[int, str], '[1, "a"]', (1, "a")),
    ],
)  # fmt: skip
def test_a_variable_is_an_instance_of_its_type(wanted: Any, text: str, value: Any) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("x", wanted)
        return s["x"]

    result = program.run(backend=bl.Mock(text)).result
    assert result == value
    assert type(result) is type(value)


def test_a_class_takes_its_fields_in_order_and_no_others() -> None:
    schema = document(Person).schema
    assert list(schema["properties"]) == [field.name for field in dataclasses.fields(Person)]
    assert schema["required"] == ["name", "age", "born"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["age"] == {"type": "integer", "minimum": 0, "maximum": 150}
    assert schema["$defs"]["Address"]["additionalProperties"] is False
    order = document(list[Order]).schema
    assert order["$defs"]["Order"]["additionalProperties"] is False
    assert document(Node).schema["$ref"] == "#/$defs/Node"


class _Deep(TypedDict):
    inner: list[dict[str, set[int]]]


class _Unreadable(TypedDict):
    inner: Missing  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class _Initial:
    given: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (list[set[int]], "set[int]"),
        (_Deep, "at inner[].*"),
        (dict[int, str], "text keys"),
        (Annotated[int, lambda value: value], "cannot be enforced"),
        (Annotated[str, pydantic.Field(ge=3)], "takes no ge"),
        (Annotated[int, bl.regex("a")], "only a str"),
        (list[bytes], "bytes"),
        (Literal[b"a"] | None, "JSON scalar"),
        (_Unreadable, "module level"),
        (_Initial, "InitVar"),
    ],
)
def test_a_type_that_cannot_be_meant_is_refused_with_its_path(wanted: Any, says: str) -> None:
    with pytest.raises(bl.UnsupportedConstraint) as caught:
        bl.gen("x", wanted)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "x", "age": 151, "born": "2020-02-29"}',
        '{"name": "x", "age": 1, "born": "2021-02-29"}',
        '{"name": "x", "age": 1}',
        '{"name": "x", "age": 1, "born": "2020-01-01", "more": 1}',
        '{"name": "x", "age": true, "born": "2020-01-01"}',
        '{"name": "x", "age": 1, "born": "2020-01-01", "address": {"street": "s", "zip": "1"}}',
        "[]",
        '{"name": "x",',
    ],
)
def test_a_text_that_is_no_instance_is_a_constraint_error(text: str) -> None:
    with pytest.raises(bl.ConstraintError):
        types.resolve(Person).value(text, truncated=False)


def test_an_object_cut_by_max_tokens_is_truncated_and_its_text_readable() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", Person, max_tokens=9)
        s += bl.gen("y", bl.seq("a", bl.capture("z", int), "b"), max_tokens=2)

    state = program.run(
        backend=bl.Mock({"x": '{"name": "x", "age": 1, "born": "2020-01-01"}', "y": "a12b"})
    )
    for name in ("x", "y", "z"):
        with pytest.raises(bl.TruncatedError):
            state[name]
    assert state.meta("x").text == '{"name": '
    assert state.meta("z").text == "a1"


def test_dates_are_those_of_the_calendar() -> None:
    date = re.compile(DATE_PATTERN)
    days = [(2, 28), (2, 29), (2, 30), (1, 31), (4, 30), (4, 31), (0, 1), (13, 1), (6, 0), (12, 31)]
    for year in (*range(0, 10_000, 7), *range(0, 10_000, 100)):
        for month, day in days:
            text = f"{year:04}-{month:02}-{day:02}"
            try:
                exists = bool(datetime.date.fromisoformat(text))
            except ValueError:
                exists = False
            assert (date.fullmatch(text) is not None) == exists, text


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.from_regex(TIME_PATTERN, fullmatch=True), st.from_regex(DATETIME_PATTERN, fullmatch=True))
def test_whatever_a_time_pattern_allows_reads_back(time: str, moment: str) -> None:
    assert isinstance(types.resolve(datetime.time).value(time, truncated=False), datetime.time)
    assert types.resolve(datetime.datetime).value(moment, truncated=False)
