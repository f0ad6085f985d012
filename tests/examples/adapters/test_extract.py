"""The judge of extraction: what a record's text says is what counts, field by field."""

from __future__ import annotations

import dataclasses
import json

import pytest

import branchline as bl
from branchline.examples.adapters.extract import (
    Contact,
    Event,
    Extraction,
    Order,
    dumps,
    first_object,
)
from branchline.examples.adapters.task import Item, Score
from branchline.examples.adapters.words import Split

TASK = Extraction()
ITEMS = [TASK.item(split, number) for split in ("train", "held_out") for number in range(60)]


def an_order() -> Item:
    return next(item for item in ITEMS if isinstance(item.facts, Order))


def changed(item: Item, **fields: object) -> str:
    return json.dumps(json.loads(item.answer) | fields)


def test_every_kind_of_record_is_asked_for() -> None:
    assert {type(item.facts) for item in ITEMS} == {Order, Event, Contact}


@pytest.mark.parametrize("item", ITEMS[:10] + ITEMS[-10:], ids=lambda item: item.answer[:40])
def test_the_right_answer_matches_the_constraint_and_is_the_record(item: Item) -> None:
    found = bl.match(TASK.constraint(item), item.answer)
    assert found.status == "full"
    assert found.value == item.facts


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.answer[:40])
def test_the_right_answer_has_every_field_right(item: Item) -> None:
    count = len(dataclasses.fields(item.facts))
    assert TASK.score(item, item.answer) == Score(count, count)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_what_the_record_says_is_in_the_text(split: Split) -> None:
    for number in range(100):
        item = TASK.item(split, number)
        text = item.prompt.partition("\nText: ")[2]
        for name in ("customer", "product", "topic", "city", "name", "company", "email"):
            value = getattr(item.facts, name, None)
            assert value is None or value in text
        for name in ("quantity", "seats", "extension"):
            value = getattr(item.facts, name, None)
            assert value is None or str(value) in text


def test_a_wrong_a_missing_and_a_mistyped_field_cost_one_each() -> None:
    item = an_order()
    assert TASK.score(item, changed(item, customer="Nobody")) == Score(6, 7)
    assert TASK.score(item, changed(item, quantity=str(item.facts.quantity))) == Score(6, 7)
    less = json.loads(item.answer)
    del less["due"], less["price"]
    assert TASK.score(item, json.dumps(less)) == Score(5, 7)


def test_numbers_are_compared_as_numbers_and_truth_is_no_number() -> None:
    item = an_order()
    assert TASK.score(item, changed(item, quantity=float(item.facts.quantity))).whole
    event = next(one for one in ITEMS if isinstance(one.facts, Event) and one.facts.free)
    assert TASK.score(event, changed(event, free=1)) == Score(6, 7)


def test_a_further_field_is_passed_by() -> None:
    item = an_order()
    assert TASK.score(item, changed(item, colour="red")).whole


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "{", "[1, 2]", '{"customer": ', "{{", "null", "{" * 5_000, '{"a":' * 200_000],
)
def test_a_text_without_an_object_has_nothing_right(text: str) -> None:
    assert first_object(text) == {}
    assert TASK.score(an_order(), text) == Score(0, 7)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "NaN", '{"a":' * 9 + "1" + "}" * 9])
def test_no_number_is_too_large_to_be_wrong(value: str) -> None:
    """Nor one that JSON does not have, nor anything else in a number's place."""
    item = an_order()
    right = json.dumps(json.loads(item.answer)["price"])
    text = item.answer.replace(f'"price": {right}', f'"price": {value}')
    assert TASK.score(item, text) == Score(6, 7)


def test_words_around_the_object_do_not_matter() -> None:
    item = an_order()
    assert TASK.score(item, f"Here it is:\n```json\n{item.answer}\n```\nAnything else?").whole


def test_records_are_written_as_constraints_write_them() -> None:
    item = an_order()
    assert dumps(item.facts) == item.answer
    assert json.loads(item.answer)["due"] == item.facts.due.isoformat()
