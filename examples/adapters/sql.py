"""SQL over a given schema: tables and a question become one query, judged by what it gives.

Invariant: the right answer gives rows on every variant of its database. A query is right when it
gives the same rows on all of them (in the same order, where the question asks for one), whatever
it looks like.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import branchline as bl
from branchline.examples.adapters.sql_database import (
    PARENT_ROWS,
    VARIANTS,
    Rows,
    Table,
    connect,
    draw_table,
    run,
)
from branchline.examples.adapters.sql_domains import DOMAINS, Category, Measure
from branchline.examples.adapters.sql_grammar import sql_grammar
from branchline.examples.adapters.sql_texts import (
    AGGREGATES,
    COMPARISONS,
    DIRECTIONS,
    EXTREMES,
    QUESTIONS,
)
from branchline.examples.adapters.task import Item, Score
from branchline.examples.adapters.words import Split, Texts

_QUERY = re.compile(r"SELECT\b[^;`]*", re.IGNORECASE)


@dataclass(frozen=True)
class Database:
    """What a question is about.

    Attributes:
        tables: the asked one first, then its parent if it has one.
        seed: of the rows.
        query: the right answer.
    """

    tables: tuple[Table, ...]
    seed: str
    query: str


class Sql:
    """The task `sql`; see `Task`."""

    name = "sql"
    max_tokens = 96

    def item(self, split: Split, number: int) -> Item:
        """See `Task.item`."""
        seed = f"sql {split} {number}"
        asking = _Asking(random.Random(seed), split, seed)
        form = asking.rng.choice([name for name in QUESTIONS if asking.suits(name)])
        query, values = getattr(asking, form)()
        question = asking.pick(QUESTIONS[form]).format(**asking.names(), **values)
        tables = "\n".join(table.header for table in asking.shown)
        prompt = f"Answer with one SQLite query.\nTables:\n{tables}\nQuestion: {question}"
        return Item(prompt, f"{query};", Database(asking.tables, seed, query))

    def constraint(self, item: Item) -> object:
        """See `Task.constraint`: queries over the item's own tables."""
        return bl.lark(sql_grammar(item.facts.tables))

    def score(self, item: Item, text: str) -> Score:
        """See `Task.score`: 1 of 1 when the first query in `text` gives the right rows."""
        found = _QUERY.search(text)
        right = found is not None and same_rows(item.facts, found[0].strip())
        return Score(int(right), 1)


def same_rows(facts: Database, query: str) -> bool:
    """Whether a query gives what the right one gives, on every variant of the database."""
    ordered = "ORDER BY" in facts.query
    for variant in range(VARIANTS):
        with closing(connect(facts.tables, facts.seed, variant)) as database:
            wanted, found = run(database, facts.query), run(database, query)
        if wanted is None or found is None or not _equal(wanted, found, ordered):
            return False
    return True


def _equal(wanted: Rows, found: Rows, ordered: bool) -> bool:
    first, second = _rounded(wanted), _rounded(found)
    return first == second if ordered else Counter(first) == Counter(second)


def _rounded(rows: Rows) -> list[tuple[object, ...]]:
    return [tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in rows]


class _Asking:
    """Draws a schema, then for a form of question the right query and the words of the question.

    Every method named like a form of `QUESTIONS` returns (query, values of the placeholders).
    """

    def __init__(self, rng: random.Random, split: Split, seed: str) -> None:
        self.rng, self.split, self.seed = rng, split, seed
        domain, other = rng.sample(DOMAINS[split], 2)
        joined = rng.random() < 0.4
        self.table = draw_table(rng, split, domain, parent=other.table if joined else "")
        self.tables: tuple[Table, ...] = (self.table,)
        if joined:
            self.tables += (draw_table(rng, split, other, rows=PARENT_ROWS),)
        self.shown = rng.sample(self.tables, len(self.tables))
        self.rows = self.table.rows(seed, 0)

    def suits(self, form: str) -> bool:
        """Joins need two tables."""
        return len(self.tables) == 2 or not form.startswith("join")

    def pick(self, texts: Texts) -> str:
        """One of the split's wordings."""
        return self.rng.choice(texts.of(self.split))

    def names(self) -> dict[str, str]:
        """Placeholders that all sentences may have."""
        domain = self.table.domain
        return {"table": domain.table, "plural": domain.plural, "label": domain.label}

    # -- forms

    def measure(self) -> tuple[str, dict[str, str]]:
        column, test, text = self._compare()
        return self._select(self._label, test), {"measure": _say(column), "comparison": text}

    def category(self) -> tuple[str, dict[str, str]]:
        test, values = self._equals()
        return self._select(self._label, test), values

    def both(self) -> tuple[str, dict[str, str]]:
        row = self.rng.randrange(len(self.rows))
        test, values = self._equals(row)
        column, other, text = self._compare(row)
        values |= {"measure": _say(column), "comparison": text}
        return self._select(self._label, f"{test} AND {other}"), values

    def between(self) -> tuple[str, dict[str, str]]:
        column = self._measure()
        values = sorted(self._values(column))
        at = self.rng.randrange(len(values) - 8)
        low, high = values[at], values[at + self.rng.randint(3, 7)]
        test = f"{column.name} BETWEEN {low} AND {high}"
        said = {"measure": _say(column), "low": str(low), "high": str(high)}
        return self._select(self._label, test), said

    def count(self) -> tuple[str, dict[str, str]]:
        column, test, text = self._compare()
        return self._select("COUNT(*)", test), {"measure": _say(column), "comparison": text}

    def count_category(self) -> tuple[str, dict[str, str]]:
        test, values = self._equals()
        return self._select("COUNT(*)", test), values

    def aggregate(self) -> tuple[str, dict[str, str]]:
        what, values = self._aggregate()
        return self._select(what), values

    def aggregate_category(self) -> tuple[str, dict[str, str]]:
        what, values = self._aggregate()
        test, more = self._equals()
        return self._select(what, test), values | more

    def top(self) -> tuple[str, dict[str, str]]:
        column, count = self._measure(), self.rng.randint(2, 9)
        order = self.rng.choice(("DESC", "ASC"))
        said = {"n": str(count), "extreme": self.pick(EXTREMES[order]), "measure": _say(column)}
        end = f"ORDER BY {column.name}{_direction(order)} LIMIT {count}"
        return f"{self._select(self._label)} {end}", said

    def group_count(self) -> tuple[str, dict[str, str]]:
        column = self._category()
        query = f"{self._select(f'{column.name}, COUNT(*)')} GROUP BY {column.name}"
        return query, {"category": _say(column)}

    def group_aggregate(self) -> tuple[str, dict[str, str]]:
        column = self._category()
        what, values = self._aggregate()
        query = f"{self._select(f'{column.name}, {what}')} GROUP BY {column.name}"
        return query, values | {"category": _say(column)}

    def sorted(self) -> tuple[str, dict[str, str]]:
        column, order = self._measure(), self.rng.choice(("DESC", "ASC"))
        said = {"measure": _say(column), "direction": self.pick(DIRECTIONS[order])}
        what = self._select(f"{self._label}, {column.name}")
        return f"{what} ORDER BY {column.name}{_direction(order)}", said

    def distinct(self) -> tuple[str, dict[str, str]]:
        column = self._category()
        return self._select(f"DISTINCT {column.name}"), {"category": _say(column)}

    def lookup(self) -> tuple[str, dict[str, str]]:
        column, name = self._measure(), self.rng.choice(self.table.names)
        query = self._select(column.name, f"{self._label} = '{name}'")
        return query, {"measure": _say(column), "name": name}

    def join_category(self) -> tuple[str, dict[str, str]]:
        child, parent = self.tables
        column = self.rng.choice([c for c in parent.columns if isinstance(c, Category)])
        value = self._joined_value(parent, column)
        source = self._join()
        query = (
            f"SELECT {child.name}.{self._label} FROM {source} "
            f"WHERE {parent.name}.{column.name} = '{value}'"
        )
        return query, {"parent": parent.name, "category": _say(column), "value": value}

    def join_count(self) -> tuple[str, dict[str, str]]:
        _, parent = self.tables
        label = f"{parent.name}.{parent.domain.label}"
        query = f"SELECT {label}, COUNT(*) FROM {self._join()} GROUP BY {label}"
        return query, {"parent": parent.name}

    # -- parts

    @property
    def _label(self) -> str:
        return self.table.domain.label

    def _select(self, what: str, test: str = "") -> str:
        return f"SELECT {what} FROM {self.table.name}" + (f" WHERE {test}" if test else "")

    def _join(self) -> str:
        child, parent = self.tables
        return (
            f"{child.name} JOIN {parent.name} ON {child.name}.{parent.name}_id = {parent.name}.id"
        )

    def _category(self) -> Category:
        return self.rng.choice([c for c in self.table.columns if isinstance(c, Category)])

    def _measure(self) -> Measure:
        return self.rng.choice([c for c in self.table.columns if isinstance(c, Measure)])

    def _values(self, column: Category | Measure) -> list[int]:
        at = self.table.column_names.index(column.name)
        return [int(row[at]) for row in self.rows]

    def _equals(self, row: int | None = None) -> tuple[str, dict[str, str]]:
        """A test for the category of a row (of any row)."""
        column = self._category()
        at = self.table.column_names.index(column.name)
        value = str((self.rng.choice(self.rows) if row is None else self.rows[row])[at])
        return f"{column.name} = '{value}'", {"category": _say(column), "value": value}

    def _compare(self, row: int | None = None) -> tuple[Measure, str, str]:
        """A test against a value of the table that a row passes: (column, SQL, words)."""
        column = self._measure()
        values = self._values(column)
        sign = self.rng.choice(tuple(COMPARISONS))
        passes = _PASSES[sign]
        middle = sorted(values)[5:-5]
        limits = [v for v in middle if row is None or passes(values[row], v)]
        if not limits:  # the row is at the end of the order: the other sign has limits
            sign = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}[sign]
            limits = middle
        limit = self.rng.choice(limits)
        text = self.pick(COMPARISONS[sign]).format(n=limit)
        return column, f"{column.name} {sign} {limit}", text

    def _aggregate(self) -> tuple[str, dict[str, str]]:
        column, function = self._measure(), self.rng.choice(tuple(AGGREGATES))
        said = {"aggregate": self.pick(AGGREGATES[function]), "measure": _say(column)}
        return f"{function}({column.name})", said

    def _joined_value(self, parent: Table, column: Category) -> str:
        """The column's value in a parent that has children."""
        row = int(self.rng.choice(self.rows)[-1]) - 1
        return str(parent.rows(self.seed, 0)[row][parent.column_names.index(column.name)])


_PASSES: dict[str, Callable[[int, int], bool]] = {
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
}


def _say(column: Category | Measure) -> str:
    return column.name.replace("_", " ")


def _direction(order: str) -> str:
    return " DESC" if order == "DESC" else ""
