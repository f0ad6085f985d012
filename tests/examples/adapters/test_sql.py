"""The judge of queries: rows count, not words; and no query can do anything but read."""

from __future__ import annotations

import random
import re
import time
from contextlib import closing

import pytest

import branchline as bl
from branchline.examples.adapters.sql import Database, Sql, same_rows
from branchline.examples.adapters.sql_database import (
    MAX_RESULT_ROWS,
    ROWS,
    VARIANTS,
    Table,
    connect,
    draw_table,
    run,
)
from branchline.examples.adapters.sql_domains import DOMAINS, Category, Measure
from branchline.examples.adapters.sql_texts import QUESTIONS
from branchline.examples.adapters.task import Item, Score
from branchline.examples.adapters.words import Split

TASK = Sql()
SPLITS: tuple[Split, ...] = ("train", "held_out")
ITEMS = [TASK.item(split, number) for split in SPLITS for number in range(150)]


def shop() -> tuple[Table, ...]:
    """book(id, title, genre, pages, ship_id) and ship(id, name, flag, crew)."""
    ship = next(domain for domain in DOMAINS["train"] if domain.table == "ship")
    book = next(domain for domain in DOMAINS["train"] if domain.table == "book")
    rng = random.Random(1)
    child = draw_table(rng, "train", book, parent="ship")
    parent = draw_table(rng, "train", ship, rows=6)
    columns = (Category("genre", ("Crime", "Poetry")), Measure("pages", 60, 900))
    crew = (Category("flag", ("Malta", "Panama")), Measure("crew", 3, 300))
    return (
        Table(child.domain, columns, child.names, "ship"),
        Table(parent.domain, crew, parent.names),
    )


def facts(query: str) -> Database:
    return Database(shop(), "test", query)


@pytest.mark.parametrize("split", SPLITS)
def test_every_form_of_question_is_asked(split: Split) -> None:
    prompts = [TASK.item(split, number).prompt for number in range(1_000)]
    questions = [prompt.partition("\nQuestion: ")[2] for prompt in prompts]
    for texts in QUESTIONS.values():
        for text in texts.of(split):
            form = re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(text)))
            assert any(map(form.fullmatch, questions)), text


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.answer[:50])
def test_the_right_answer_is_right_and_gives_rows(item: Item) -> None:
    assert TASK.score(item, item.answer) == Score(1, 1)
    found = []
    for variant in range(VARIANTS):
        with closing(connect(item.facts.tables, item.facts.seed, variant)) as database:
            found.append(run(database, item.facts.query))
    assert None not in found
    assert any(found)


@pytest.mark.parametrize("item", ITEMS[::10], ids=lambda item: item.answer[:50])
def test_the_grammar_allows_the_right_answer_and_no_other_table(item: Item) -> None:
    constraint = TASK.constraint(item)
    assert bl.match(constraint, item.answer).status == "full"
    assert bl.match(constraint, "SELECT * FROM sqlite_master;").status == "none"
    table = item.facts.tables[0].name
    assert bl.match(constraint, f"SELECT * FROM {table}; DROP TABLE {table};").status == "none"
    assert bl.match(constraint, f"SELECT password FROM {table};").status == "none"


def test_what_the_grammar_allows_runs_in_sqlite() -> None:
    tables = shop()
    constraint = TASK.constraint(Item("", "", facts("")))
    queries = (
        "SELECT * FROM book",
        "SELECT DISTINCT genre FROM book",
        "SELECT genre, AVG(pages), COUNT(*) FROM book GROUP BY genre ORDER BY COUNT(*) DESC",
        "SELECT title FROM book WHERE pages BETWEEN 100 AND 200 AND genre = 'Crime' LIMIT 3",
        "SELECT ship.name FROM book JOIN ship ON book.ship_id = ship.id WHERE ship.crew > 9",
        "SELECT MIN(crew) FROM ship WHERE flag = 'Malta' ORDER BY crew",
    )
    with closing(connect(tables, "test", 0)) as database:
        for query in queries:
            assert bl.match(constraint, f"{query};").status == "full", query
            assert run(database, query) is not None, query


def test_rows_are_compared_whatever_the_query_looks_like() -> None:
    asked = facts("SELECT title FROM book WHERE pages > 400")
    assert same_rows(asked, "select b.title from book b where not b.pages <= 400")
    assert same_rows(asked, "SELECT title FROM book WHERE pages >= 401 ORDER BY pages")
    assert not same_rows(asked, "SELECT title FROM book WHERE pages > 300")
    assert not same_rows(asked, "SELECT title, pages FROM book WHERE pages > 400")
    assert not same_rows(asked, "SELECT pages FROM book WHERE pages > 400")


def test_order_counts_where_it_was_asked_for() -> None:
    asked = facts("SELECT title FROM book ORDER BY pages DESC LIMIT 5")
    assert same_rows(asked, "SELECT title FROM book ORDER BY -pages LIMIT 5")
    assert not same_rows(
        asked, "SELECT title FROM (SELECT * FROM book ORDER BY pages DESC LIMIT 5) ORDER BY pages"
    )


def test_a_query_that_is_right_on_one_database_by_chance_is_wrong() -> None:
    asked = facts("SELECT COUNT(*) FROM book WHERE pages > 400")
    with closing(connect(asked.tables, asked.seed, 0)) as database:
        rows = run(database, asked.query)
    assert rows is not None
    ((count,),) = rows
    assert not same_rows(asked, f"SELECT {count}")


def test_rows_count_as_often_as_they_come() -> None:
    asked = facts("SELECT genre FROM book")
    assert not same_rows(asked, "SELECT DISTINCT genre FROM book")


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE book",
        "DELETE FROM book",
        "INSERT INTO book (id) VALUES (99)",
        "UPDATE book SET pages = 1",
        "ATTACH DATABASE ':memory:' AS other",
        "PRAGMA table_info(book)",
        "CREATE TABLE other (id)",
        "SELECT load_extension('x')",
        "SELECT 1; SELECT 2",
        "SELECT",
        "",
        "SELECT 'a\x00b",
        "SELECT \udc80",
    ],
)
def test_what_is_no_reading_query_is_refused_and_changes_nothing(query: str) -> None:
    with closing(connect(shop(), "test", 0)) as database:
        before = run(database, "SELECT * FROM book")
        assert not run(database, query)
        assert run(database, "SELECT * FROM book") == before


def test_a_query_without_end_is_ended() -> None:
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"
    )
    wide = "SELECT COUNT(*) FROM book a, book b, book c, book d, book e, book f, book g"
    many = "SELECT a.id FROM book a, book b, book c"
    large = "SELECT zeroblob(900000000)"
    with closing(connect(shop(), "test", 0)) as database:
        begin = time.monotonic()
        assert [run(database, query) for query in (endless, wide, many, large)] == [None] * 4
        assert time.monotonic() - begin < 30  # it would take years
        pairs = run(database, "SELECT 1 FROM book a, book b")
        assert pairs is not None and len(pairs) == ROWS * ROWS <= MAX_RESULT_ROWS


def test_the_query_is_found_among_words() -> None:
    item = ITEMS[0]
    assert TASK.score(item, f"Sure!\n```sql\n{item.answer}\n```\nIt reads the rows.").whole
    assert TASK.score(item, item.answer.rstrip(";")).whole
    assert not TASK.score(item, "I do not know.").whole
    assert not TASK.score(item, "").whole
