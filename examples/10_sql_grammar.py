"""10 SQL grammar: the model can only write queries that run, and SQLite proves it.

The grammar names the table and its columns, so a query for a column that is not there cannot be
written, numbers are compared with numbers, and `match` refuses the rest without a model.
"""

import sqlite3

import branchline as bl

SQL = bl.lark(r"""
start: "SELECT " columns " FROM city" (" WHERE " test)? (" ORDER BY " COLUMN " DESC"?)? ";"
columns: "*" | "COUNT(*)" | COLUMN (", " COLUMN)~0..2
test: NUMERIC " " COMPARE " " NUMBER | TEXTUAL " = " QUOTED
COLUMN: NUMERIC | TEXTUAL
NUMERIC: "population" | "founded"
TEXTUAL: "name" | "country"
COMPARE: "<" | ">" | "="
NUMBER: /[1-9][0-9]{0,7}/
QUOTED: /'[A-Z][a-z]{1,11}'/
""")
CITIES = [
    ("Porto", "Portugal", 231800, 1123),
    ("Lisbon", "Portugal", 545923, 1147),
    ("Prague", "Czechia", 1357326, 870),
    ("Utrecht", "Netherlands", 361742, 1122),
]
SHOTS = (
    "Table city(name, country, population, founded)\n"
    "Q: Which cities are in Spain?\nSQL: SELECT name FROM city WHERE country = 'Spain';\n"
    "Q: Which cities have more than 900000 people?\n"
    "SQL: SELECT name FROM city WHERE population > 900000;\n"
)


@bl.function(temperature=0.0, max_tokens=48)
def ask(s: bl.State, question: str, database: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Write a query for a question and run it."""
    s += f"{SHOTS}Q: {question}\nSQL: " + bl.gen("query", SQL)
    return database.execute(s["query"]).fetchall()


def main() -> list[bl.State]:
    """Print each query with what SQLite answers, and what the grammar keeps out."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE city (name TEXT, country TEXT, population INT, founded INT)")
    database.executemany("INSERT INTO city VALUES (?, ?, ?, ?)", CITIES)
    questions = ("Which cities are in Portugal?", "Which cities have more than 500000 people?")
    states = [ask.run(question=question, database=database) for question in questions]
    for state in states:
        print(f"{state['query']}\n  {state.result}")
    found = bl.match(SQL, "SELECT name FROM users; DROP TABLE city;")
    print(f"a table that is not there: {found.status} at character {found.error_at}")
    database.close()
    return states


if __name__ == "__main__":
    main()
