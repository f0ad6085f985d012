"""A grammar for queries over given tables: what it allows, SQLite runs.

Invariant: names are those of the tables, joins follow a table's reference to its parent, and in a
join every column says whose it is. Knows nothing of questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchline.examples.adapters.sql_database import Table

_RULES = """
%(s)s: %(s)s_items " FROM %(table)s"%(join)s (" WHERE " %(s)s_test (" AND " %(s)s_test)?)? %(s)s_end
%(s)s_items: "*" | ("DISTINCT ")? %(s)s_item (", " %(s)s_item)~0..2
%(s)s_item: %(s)s_column | "COUNT(*)" | FUNCTION "(" %(s)s_column ")"
%(s)s_test: %(s)s_column (SIGN (NUMBER | TEXT) | " BETWEEN " NUMBER " AND " NUMBER)
%(s)s_end: (" GROUP BY " %(s)s_column)? (" ORDER BY " %(s)s_item (" DESC" | " ASC")?)? LIMIT?
%(s)s_column: %(columns)s
"""
_TERMINALS = r"""
FUNCTION: "AVG" | "MAX" | "MIN" | "SUM"
SIGN: " = " | " > " | " < " | " >= " | " <= "
NUMBER: /[0-9]{1,6}/
TEXT: /'[A-Za-z0-9 ]{1,32}'/
LIMIT: / LIMIT [1-9][0-9]?/
"""


def sql_grammar(tables: Sequence[Table]) -> str:
    """Lark text for `SELECT … ;` over one of the tables, or over one joined with its parent."""
    rules = []
    for table in tables:
        rules.append(_rules(f"{table.name}_alone", table.name, "", table.column_names))
        if table.parent:
            parent = next(other for other in tables if other.name == table.parent)
            # A literal of its own: one that begins like another would end where that one does.
            join = f' " JOIN {parent.name} ON {table.name}.{parent.name}_id = {parent.name}.id"'
            columns = [f"{t.name}.{name}" for t in (table, parent) for name in t.column_names]
            rules.append(_rules(f"{table.name}_joined", table.name, join, columns))
    names = [rule.strip().partition(":")[0] for rule in rules]
    return f'start: "SELECT " ({" | ".join(names)}) ";"\n{"".join(rules)}{_TERMINALS}'


def _rules(name: str, table: str, join: str, columns: Sequence[str]) -> str:
    quoted = " | ".join(f'"{column}"' for column in columns)
    return _RULES % {"s": name, "table": table, "join": join, "columns": quoted}
