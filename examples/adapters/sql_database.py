"""Databases of the SQL task: tables with rows drawn from seeds, and queries run without any risk.

Invariant: a query can read the tables and nothing else, within bounded work; running one never
raises. The variants of a database have the same tables, names and values to ask for, but other
numbers, so a query that is right by chance on one is wrong on another.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass

from branchline.examples.adapters import words
from branchline.examples.adapters.sql_domains import Category, Domain, Measure
from branchline.examples.adapters.words import Split

ROWS = 24
PARENT_ROWS = 6
VARIANTS = 3
MAX_STEPS = 200_000
"""Virtual machine instructions of SQLite that a query may take."""
MAX_RESULT_ROWS = 1_000
MAX_BYTES = 100_000
"""Of a value that a query makes."""

Value = int | str
Row = tuple[Value, ...]
Rows = list[tuple[object, ...]]

_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION})


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        domain: what it is about.
        columns: the categories and measures it has, in order; behind `id` and the label.
        names: the label of each row; the same in all variants.
        parent: table that `{parent}_id` refers to; "" = none.
    """

    domain: Domain
    columns: tuple[Category | Measure, ...]
    names: tuple[str, ...]
    parent: str = ""

    @property
    def name(self) -> str:
        """Its name in SQL."""
        return self.domain.table

    @property
    def column_names(self) -> list[str]:
        """All columns, `id` first."""
        names = ["id", self.domain.label, *[column.name for column in self.columns]]
        return [*names, f"{self.parent}_id"] if self.parent else names

    @property
    def header(self) -> str:
        """`name(column TYPE, …)`."""
        texts = {self.domain.label} | {c.name for c in self.columns if isinstance(c, Category)}
        typed = [f"{n} {'TEXT' if n in texts else 'INTEGER'}" for n in self.column_names]
        return f"{self.name}({', '.join(typed)})"

    def rows(self, seed: str, variant: int) -> list[Row]:
        """The rows of a variant, in the order of `column_names`."""
        rng = random.Random(f"{seed} {self.name} {variant}")
        count = len(self.names)
        drawn: list[list[Value]] = [list(range(1, count + 1)), list(self.names)]
        for column in self.columns:
            if isinstance(column, Category):
                drawn.append([rng.choice(column.values) for _ in range(count)])
            else:
                drawn.append(list(rng.sample(range(column.low, column.high + 1), count)))
        if self.parent:
            drawn.append([rng.randint(1, PARENT_ROWS) for _ in range(count)])
        return list(zip(*drawn, strict=True))


def draw_table(
    rng: random.Random, split: Split, domain: Domain, rows: int = ROWS, parent: str = ""
) -> Table:
    """A table with one or two categories and one to three measures of a domain, in any order."""
    categories = rng.sample(domain.categories, rng.randint(1, len(domain.categories)))
    measures = rng.sample(domain.measures, rng.randint(1, len(domain.measures)))
    columns: list[Category | Measure] = [*categories, *measures]
    rng.shuffle(columns)
    if domain.people:
        draw = words.person
    else:
        draw = words.code if domain.label in ("code", "model") else words.title
    names: dict[str, None] = {}
    while len(names) < rows:
        names[draw(rng, split)] = None
    return Table(domain, tuple(columns), tuple(names), parent)


def connect(tables: tuple[Table, ...], seed: str, variant: int) -> sqlite3.Connection:
    """The database of a variant, in memory, closed to everything but reading."""
    database = sqlite3.connect(":memory:")
    for table in tables:
        database.execute(f"CREATE TABLE {table.header}")
        marks = ", ".join("?" * len(table.column_names))
        rows = table.rows(seed, variant)
        database.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)
    database.commit()
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
    database.set_authorizer(_authorize)
    return database


def run(database: sqlite3.Connection, query: str) -> Rows | None:
    """The rows of a query; None where SQLite refuses it, or it takes too long or too many rows."""
    calls = iter(range(MAX_STEPS // 1_000))
    # Called every 1,000 instructions; a true answer interrupts the query.
    database.set_progress_handler(lambda: next(calls, None) is None, 1_000)
    try:
        rows: Rows = database.execute(query).fetchmany(MAX_RESULT_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None
    return rows if len(rows) <= MAX_RESULT_ROWS else None


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
