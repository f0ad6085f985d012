"""How a file of JSON Schemas with instances fares: exact, leaking, refusing a valid value, refused.

`python tools/check_schemas.py FILE`: one JSON object a line with "id", "schema" and "tests", a list
of {"data", "valid"}. It is the part of `branchline bench grammar --schemas` that needs no model.
Exit status 1 when any schema accepts an invalid instance.
"""

from __future__ import annotations

import sys

from branchline.runtime.bench.grammar_schemas import show_verdicts, verdicts
from branchline.runtime.bench.schema_set import read


def main(arguments: list[str]) -> int:
    """Print every schema that is not exact, behind the counts."""
    samples = read(arguments[0])
    found = verdicts(samples)
    show_verdicts(found, len(samples), sys.stdout)
    return 1 if found.leaks else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
