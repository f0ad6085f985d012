"""Types for the tests of typed values, at module level so that their annotations can be read."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
from hypothesis import strategies as st

import branchline as bl


class Colour(enum.Enum):
    RED = "red"
    DARK = 2


@dataclasses.dataclass
class Address:
    street: str
    zip: Annotated[str, bl.regex("[0-9]{5}")]


@dataclasses.dataclass
class Person:
    name: str
    age: Annotated[int, msgspec.Meta(ge=0, le=150)]
    born: datetime.date
    address: Address | None = None
    tags: list[str] = dataclasses.field(default_factory=list)
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True)
class Node:
    value: int
    children: list[Node] = dataclasses.field(default_factory=list)


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Order(pydantic.BaseModel):
    id: uuid.UUID
    items: Annotated[list[Literal["tea", "cake"]], pydantic.Field(min_length=1, max_length=3)]
    paid: bool | None = None
    at: datetime.datetime | None = None
    next: Order | None = None


whole = st.integers(-(10**18), 10**18)
texts = st.text(st.characters(codec="utf-8"), max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)
dates = st.dates()
times = st.times()
moments = st.datetimes()
addresses = st.builds(Address, street=texts, zip=st.from_regex(r"[0-9]{5}", fullmatch=True))
addresses = addresses.filter(lambda address: address.zip.isascii())
people = st.builds(
    Person,
    name=texts,
    age=st.integers(0, 150),
    born=dates,
    address=st.none() | addresses,
    tags=st.lists(texts, max_size=2),
    colour=st.sampled_from(Colour),
)
nodes = st.recursive(
    st.builds(Node, value=whole, children=st.just([])),
    lambda inner: st.builds(Node, value=whole, children=st.lists(inner, max_size=2)),
    max_leaves=4,
)
movies = st.fixed_dictionaries({"title": texts}, optional={"year": whole})
points = st.builds(Point, x=whole, y=numbers)
orders = st.builds(
    Order,
    id=st.uuids(),
    items=st.lists(st.sampled_from(["tea", "cake"]), min_size=1, max_size=3),
    paid=st.none() | st.booleans(),
    at=st.none() | moments,
    next=st.none(),
)

LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, texts),
    (int, whole),
    (float, numbers),
    (bool, st.booleans()),
    (type(None), st.none()),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (Colour, st.sampled_from(Colour)),
    (datetime.date, dates),
    (datetime.time, times),
    (datetime.datetime, moments),
    (uuid.UUID, st.uuids()),
    (Address, addresses),
    (Person, people),
    (Node, nodes),
    (Movie, movies),
    (Point, points),
    (Order, orders),
]


def combined(pair: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """A type made of `pair`'s, with instances of it."""
    wanted, values = pair
    return st.sampled_from(
        [
            (list[wanted], st.lists(values, max_size=3)),
            (dict[str, wanted], st.dictionaries(texts, values, max_size=2)),
            (wanted | None, st.none() | values),
            (tuple[wanted, int], st.tuples(values, whole)),
            (tuple[wanted, ...], st.lists(values, max_size=2).map(tuple)),
        ]
    )


pairs = st.recursive(st.sampled_from(LEAVES), lambda inner: inner.flatmap(combined), max_leaves=3)


def plain(value: Any) -> Any:
    """An instance as JSON values, without the code under test."""
    if isinstance(value, pydantic.BaseModel):
        raw = value.model_dump(mode="json")
        if value.at is not None:  # type: ignore[attr-defined]
            raw["at"] = value.at.isoformat()  # type: ignore[attr-defined]
        return raw
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Point):
        return {"x": value.x, "y": value.y}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
