"""12 adapters: one model, and two adapters of 2.5 MB that each make it good at one thing.

A `gen` names the adapter that writes its value, a block or a program that of all its gens. Branches
share the tokens of the prompt; whoever writes, model or adapter, all run in the same batch.
"""

import sqlite3
from contextlib import closing

import branchline as bl
from branchline.examples.adapters.extract import SHAPES, Order

ADAPTERS = {"extract": "smollm2-135m-extract", "sql": "smollm2-135m-sql"}
ORDER = (
    "Ada Lovelace from the museum called: she needs 12 brass lamps at 18.50 euros each, "
    "by 3 June 2026, and it is urgent."
)
TABLE = "city(id INTEGER, name TEXT, country TEXT, population INTEGER)"
PORTO, LISBON = ("Porto", "Portugal", 231800), ("Lisbon", "Portugal", 545923)
CITIES = [PORTO, LISBON, ("Prague", "Czechia", 1357326)]


@bl.function(temperature=0.0, max_tokens=128)
def read(s: bl.State, text: str) -> list[Order]:
    """Read an order twice under the same constraint: by the model itself, and by the adapter."""
    s += bl.user(f"Write the order in this text as JSON: {SHAPES[Order]}\nText: {text}")
    with s.fork(2) as branches:
        for branch, adapter in zip(branches, ("", "extract"), strict=True):
            branch += bl.assistant(bl.gen("order", Order, adapter=adapter))
    return list(s["order"])


@bl.function(temperature=0.0, max_tokens=64, adapter="sql")
def ask(s: bl.State, question: str, database: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Write a query for a question, and run it."""
    s += bl.user(f"Answer with one SQLite query.\nTables:\n{TABLE}\nQuestion: {question}")
    s += bl.assistant(bl.gen("query"))
    return database.execute(s["query"]).fetchall()


def main() -> list[bl.State]:
    """Print an order as both read it, and queries with what SQLite answers."""
    database = sqlite3.connect(":memory:")
    with closing(bl.Engine(adapters=ADAPTERS)) as engine, closing(database):
        database.execute(f"CREATE TABLE {TABLE}")
        database.executemany("INSERT INTO city VALUES (NULL, ?, ?, ?)", CITIES)
        orders = read.run(text=ORDER, backend=engine)
        for meta, order in zip(orders.meta("order"), orders.result, strict=True):
            print(f"{meta.adapter or 'the model itself'}: {order}")
        questions = ("Which cities are in Portugal?", "How many cities are there in each country?")
        asked = [ask.run(question=q, database=database, backend=engine) for q in questions]
        for state in asked:
            print(f"{state['query']}\n  {state.result}")
    return [orders, *asked]


if __name__ == "__main__":
    main()
