"""Small schemas with values that are valid and values that are not, at least one per keyword."""

from __future__ import annotations

from tests.grammar.json_schema.table_of_structures import ARRAYS, COMBINED, OBJECTS, REFERENCES
from tests.grammar.json_schema.table_of_values import FORMATS, NUMBERS, STRINGS, TYPES, Row

__all__ = ["FORMATS", "TABLE", "Row"]

TABLE = [*TYPES, *NUMBERS, *STRINGS, *ARRAYS, *OBJECTS, *COMBINED, *REFERENCES]
