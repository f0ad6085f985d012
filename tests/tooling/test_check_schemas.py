"""The check of schemas says what fares how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_verdict_and_the_exit_status(tmp_path: Path) -> None:
    number = {"type": "integer"}
    rows = [
        ("fits", number, [(1, True), ("a", False)]),
        ("refused", {"$dynamicRef": "#a"}, [(1, True)]),
        ("rejects", number, [("wrongly labelled", True)]),
    ]
    leaking = [("leaks", number, [(3, False)])]
    for some, status in ((rows, 0), ([*rows, *leaking], 1)):
        file = tmp_path / f"{status}.jsonl"
        lines = [
            json.dumps(
                {"id": name, "schema": schema, "tests": [{"data": d, "valid": v} for d, v in tests]}
            )
            for name, schema, tests in some
        ]
        file.write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, str(ROOT / "tools" / "check_schemas.py"), str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert f"values: 1 of {len(some)}; let an invalid one through: {status};" in done.stdout
        assert "refuse a valid one: 1; refused: 1" in done.stdout
        assert "refused: refused: json_schema: $dynamicRef" in done.stdout
        assert ("lets an invalid value through: leaks: 3" in done.stdout) == bool(status)
