"""How a file of JSON Schemas with instances fares: exact, refused, rejecting, or leaking.

`python tools/check_schemas.py FILE`: one JSON object a line with "id", "schema" and "tests", a list
of {"data", "valid"}. A schema is exact when every valid instance, as `json.dumps` writes it, is
accepted and every invalid one is not. Exit status 1 when any schema accepts an invalid instance.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import BranchlineError
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer


def verdict(engine: GrammarBackends, schema: Any, tests: list[dict[str, Any]]) -> tuple[str, str]:
    """("exact" | "refused" | "rejects" | "leaks", what about)."""
    try:
        grammar = engine.compile(Constraint(kind="json_schema", text=json.dumps(schema)))
    except BranchlineError as error:
        return "refused", error.message
    rejected = ""
    for test in tests:
        text = json.dumps(test["data"])
        matcher = grammar.matcher()
        accepted = all(matcher.accept(byte) for byte in text.encode()) and matcher.is_accepting()
        if accepted and not test["valid"]:
            return "leaks", text
        if test["valid"] and not accepted:
            rejected = rejected or text
    return ("rejects", rejected) if rejected else ("exact", "")


def main(arguments: list[str]) -> int:
    """Print every schema that is not exact, then the counts."""
    engine = GrammarBackends(ByteTokenizer(), threads=1)
    counts: Counter[str] = Counter()
    try:
        for line in Path(arguments[0]).read_bytes().split(b"\n"):
            if not line:
                continue
            row = json.loads(line)
            found, about = verdict(engine, row["schema"], row["tests"])
            counts[found] += 1
            if found != "exact":
                print(f"{found:<8} {row['id']}: {about[:160]}")
    finally:
        engine.close()
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    return 1 if counts["leaks"] else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
