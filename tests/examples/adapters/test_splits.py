"""Training and held-out items share no entity, no value, no schema and no sentence."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from branchline.examples.adapters import extract_texts, sql_texts
from branchline.examples.adapters.extract import Extraction
from branchline.examples.adapters.sql import Sql
from branchline.examples.adapters.sql_domains import DOMAINS, Domain
from branchline.examples.adapters.task import Task
from branchline.examples.adapters.words import POOLS, Split, Texts

TASKS: tuple[Task, ...] = (Extraction(), Sql())
SENTENCES: dict[str, Texts] = {
    "orders": extract_texts.ORDER_TEXTS,
    "events": extract_texts.EVENT_TEXTS,
    "contacts": extract_texts.CONTACT_TEXTS,
    "asides": extract_texts.ASIDES,
    **extract_texts.CHOICES,
    **sql_texts.COMPARISONS,
    **sql_texts.AGGREGATES,
    **{f"direction {name}": texts for name, texts in sql_texts.DIRECTIONS.items()},
    **{f"extreme {name}": texts for name, texts in sql_texts.EXTREMES.items()},
    **{f"question {name}": texts for name, texts in sql_texts.QUESTIONS.items()},
}


def entity_words(split: Split) -> set[str]:
    """Every word of every pool and every value of every domain, in lower case."""
    texts = list(chain.from_iterable(pool.of(split) for pool in POOLS.values()))
    for domain in DOMAINS[split]:
        texts += chain.from_iterable(category.values for category in domain.categories)
    return set(re.findall(r"[a-z0-9]+", " ".join(texts).lower())) - {"example"}


def schema_names(domain: Domain) -> set[str]:
    """Its table, and its columns but keys and labels."""
    columns = {column.name for column in (*domain.categories, *domain.measures)}
    return {domain.table, domain.plural} | columns


def test_no_word_of_an_entity_is_in_both_splits() -> None:
    assert not entity_words("train") & entity_words("held_out")


def test_no_table_or_column_is_in_both_splits() -> None:
    train = set().union(*map(schema_names, DOMAINS["train"]))
    assert not train & set().union(*map(schema_names, DOMAINS["held_out"]))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_tables_of_a_split_have_names_of_their_own(split: Split) -> None:
    tables = [domain.table for domain in DOMAINS[split]]
    assert len(tables) == len(set(tables))
    for domain in DOMAINS[split]:
        columns = [column.name for column in (*domain.categories, *domain.measures)]
        assert len(columns) == len({*columns, "id", domain.label}) - 2


@pytest.mark.parametrize("name", SENTENCES)
def test_no_sentence_is_in_both_splits(name: str) -> None:
    texts = SENTENCES[name]
    train, held_out = ([text.lower() for text in texts.of(s)] for s in ("train", "held_out"))
    assert train and held_out
    assert len({*train, *held_out}) == len(train) + len(held_out)


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_of_a_kind_say_the_same(name: str) -> None:
    optional = {"table", "plural", "label", "number"}
    texts = SENTENCES[name]
    said = [
        set(re.findall(r"\{(\w+)\}", text)) - optional for text in (*texts.train, *texts.held_out)
    ]
    assert all(names == said[0] for names in said)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_held_out_items_are_none_of_the_training_items(task: Task) -> None:
    held_out = {task.item("held_out", number).prompt for number in range(200)}
    assert len(held_out) == 200
    assert not held_out & {task.item("train", number).prompt for number in range(3_000)}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_item_is_a_function_of_its_split_and_number(task: Task) -> None:
    for number in range(20):
        assert task.item("train", number) == task.item("train", number)
        assert task.item("train", number) != task.item("train", number + 1)
        assert task.item("train", number).prompt != task.item("held_out", number).prompt
