"""Extraction: a text becomes a typed record (an order, an event or a contact), as one JSON object.

Invariant: every field of a record is said in its text exactly once, in one of several spellings;
sentences of the two splits are different ones. Judged field by field.
"""

from __future__ import annotations

import datetime
import json
import random
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

import msgspec

from branchline.examples.adapters import words
from branchline.examples.adapters.extract_texts import (
    ASIDES,
    CHOICES,
    CONTACT_TEXTS,
    EVENT_TEXTS,
    ORDER_TEXTS,
)
from branchline.examples.adapters.task import Item, Score
from branchline.examples.adapters.words import Split, Texts

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=48)]
Count = Annotated[int, msgspec.Meta(ge=0, le=99_999)]
Currency = Literal["EUR", "USD", "GBP"]
Priority = Literal["low", "normal", "high"]
Kind = Literal["concert", "lecture", "workshop", "exhibition"]
Role = Literal["buyer", "engineer", "lawyer", "manager"]
Price = Annotated[float, msgspec.Meta(ge=0.0, le=99_999.0)]


@dataclass
class Order:
    """Who wants how many of what, for how much each, by when."""

    customer: Text
    product: Text
    quantity: Count
    price: Price
    currency: Currency
    due: datetime.date
    priority: Priority


@dataclass
class Event:
    """What happens where and when, and who may come."""

    topic: Text
    kind: Kind
    city: Text
    date: datetime.date
    hour: Count
    seats: Count
    free: bool


@dataclass
class Contact:
    """A person somebody has met."""

    name: Text
    company: Text
    role: Role
    email: Text
    extension: Count
    met: datetime.date


Record = Order | Event | Contact
SHAPES: dict[type[Record], str] = {
    Order: '{"customer": text, "product": text, "quantity": integer, "price": number, '
    '"currency": "EUR" | "USD" | "GBP", "due": "YYYY-MM-DD", '
    '"priority": "low" | "normal" | "high"}',
    Event: '{"topic": text, "kind": "concert" | "lecture" | "workshop" | "exhibition", '
    '"city": text, "date": "YYYY-MM-DD", "hour": integer (0-23), "seats": integer, '
    '"free": true | false}',
    Contact: '{"name": text, "company": text, "role": "buyer" | "engineer" | "lawyer" | "manager", '
    '"email": text, "extension": integer, "met": "YYYY-MM-DD"}',
}
"""What the prompt says of a record."""
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}
_WORDS = {"EUR": "euros", "USD": "dollars", "GBP": "pounds"}


class Extraction:
    """The task `extract`; see `Task`."""

    name = "extract"
    max_tokens = 128

    def item(self, split: Split, number: int) -> Item:
        """See `Task.item`."""
        rng = random.Random(f"extract {split} {number}")
        make = rng.choice((_order, _event, _contact))
        record, text = make(rng, split)
        kind = type(record)
        name = kind.__name__.lower()
        prompt = f"Write the {name} in this text as JSON: {SHAPES[kind]}\nText: {text}"
        return Item(prompt, dumps(record), record)

    def constraint(self, item: Item) -> object:
        """See `Task.constraint`: the record's class."""
        return type(item.facts)

    def score(self, item: Item, text: str) -> Score:
        """See `Task.score`: fields of the first JSON object in `text` that are right."""
        wanted = json.loads(dumps(item.facts))
        found = first_object(text)
        right = sum(_same(found[key], value) for key, value in wanted.items() if key in found)
        return Score(right, len(wanted))


def dumps(record: Record) -> str:
    """A record as branchline's constraints write it."""
    return json.dumps(asdict(record), default=str, ensure_ascii=False)


def first_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text; {} when there is none."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(found, bool) or isinstance(wanted, str):
        return type(found) is type(wanted) and bool(found == wanted)
    return isinstance(found, int | float) and bool(found == wanted)


def _order(rng: random.Random, split: Split) -> tuple[Record, str]:
    currency: Currency = rng.choice(get_args(Currency))
    priority: Priority = rng.choice(get_args(Priority))
    record = Order(
        customer=words.person(rng, split),
        product=words.product(rng, split),
        quantity=rng.randint(2, 240),
        price=rng.choice((float(rng.randint(3, 900)), rng.randint(300, 90_000) / 100)),
        currency=currency,
        due=_day(rng),
        priority=priority,
    )
    amount = f"{record.price:.2f}" if record.price % 1 else f"{record.price:.0f}"
    spelled = rng.choice(
        (f"{_SIGNS[currency]}{amount}", f"{amount} {currency}", f"{amount} {_WORDS[currency]}")
    )
    return record, _tell(
        rng,
        split,
        ORDER_TEXTS,
        customer=record.customer,
        product=record.product,
        quantity=record.quantity,
        price=spelled,
        due=_spell_day(rng, record.due),
        priority=_choice(rng, split, priority),
    )


def _event(rng: random.Random, split: Split) -> tuple[Record, str]:
    kind: Kind = rng.choice(get_args(Kind))
    free = rng.random() < 0.5
    record = Event(
        topic=words.TOPIC.draw(rng, split),
        kind=kind,
        city=words.CITY.draw(rng, split),
        date=_day(rng),
        hour=rng.randint(8, 21),
        seats=rng.randint(12, 900),
        free=free,
    )
    return record, _tell(
        rng,
        split,
        EVENT_TEXTS,
        topic=record.topic,
        kind=kind,
        city=record.city,
        date=_spell_day(rng, record.date),
        hour=_spell_hour(rng, record.hour),
        seats=record.seats,
        free=_choice(rng, split, "free" if free else "paid"),
    )


def _contact(rng: random.Random, split: Split) -> tuple[Record, str]:
    role: Role = rng.choice(get_args(Role))
    name = words.person(rng, split)
    first, last = name.lower().split()
    site = words.WEBSITE.draw(rng, split)
    record = Contact(
        name=name,
        company=words.COMPANY.draw(rng, split),
        role=role,
        email=rng.choice((f"{first}.{last}@{site}", f"{first[0]}{last}@{site}", f"{last}@{site}")),
        extension=rng.randint(100, 9_999),
        met=_day(rng),
    )
    return record, _tell(
        rng,
        split,
        CONTACT_TEXTS,
        name=name,
        company=record.company,
        role=_choice(rng, split, role),
        email=record.email,
        extension=record.extension,
        met=_spell_day(rng, record.met),
    )


def _tell(rng: random.Random, split: Split, texts: Texts, **values: object) -> str:
    """One of the split's texts, filled; half of them with a sentence about something else."""
    text = rng.choice(texts.of(split)).format(**values)
    if rng.random() < 0.5:
        return text
    aside = rng.choice(ASIDES.of(split)).format(number=rng.randint(2, 999))
    return f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"


def _choice(rng: random.Random, split: Split, value: str) -> str:
    """A wording of one value of a closed set."""
    return rng.choice(CHOICES[value].of(split))


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(2024, 1, 1) + datetime.timedelta(rng.randrange(4 * 365))


def _spell_day(rng: random.Random, day: datetime.date) -> str:
    month = _MONTHS[day.month - 1]
    spellings = (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        day.isoformat(),
        f"{day.day} {month[:3]} {day.year}",
        f"{_WEEKDAYS[day.weekday()]}, {day.day} {month} {day.year}",
        f"{day.year}/{day.month:02d}/{day.day:02d}",
    )
    return rng.choice(spellings)


def _spell_hour(rng: random.Random, hour: int) -> str:
    half = f"{(hour - 1) % 12 + 1} {'pm' if hour >= 12 else 'am'}"
    return rng.choice((f"{hour}:00", half, f"{hour} h"))
