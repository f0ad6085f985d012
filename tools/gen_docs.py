"""Write the generated pages of docs/; `--check` says whether they are current.

configuration.md comes from runtime/config, structured_output.md from the tables in runtime/grammar,
routes.md from the structs and limits in runtime/server.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from route_tables import page as routes_page
from structured_page import page as structured_page

from branchline.runtime.config.env import VARIABLES
from branchline.runtime.config.sections import SECTIONS

DOCS = Path(__file__).resolve().parent.parent / "docs"

HEAD = """\
# Configuration

<!-- Written by `make docs` from runtime/config/sections.py and env.py: edit those instead. -->

Every setting has one name, the same everywhere: `bl.Engine(dtype="float32")` in Python and
`--dtype float32` on the command line (`branchline run`, `demo` and `bench`). An unknown name or an
impossible value is an error that says what to use. "auto" and `None` mean: decide for me; what was
decided, and why, is in `engine.info()`.
"""


def configuration_page() -> str:
    """The whole text of the page of settings."""
    parts = [HEAD]
    for section in SECTIONS:
        title = section.__name__.removesuffix("Section")
        parts.append(f"\n## {title}\n\n{(section.__doc__ or '').strip()}\n")
        parts.append("\n| setting | type | default | meaning |\n|---|---|---|---|\n")
        for item in fields(section):
            kind = str(item.type).replace("|", "\\|")
            default = f"`{item.default!r}`".replace("'", '"')
            text = str(item.metadata["help"]).replace("|", "\\|")
            parts.append(f"| `{item.name}` | `{kind}` | {default} | {text} |\n")
    parts.append("\n## Environment variables\n\nNo other one is read.\n")
    parts.append("\n| variable | meaning |\n|---|---|\n")
    parts += [f"| `{name}` | {text} |\n" for name, text in VARIABLES.items()]
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` only compare, 1 if one is out of date."""
    status = 0
    for name, page in PAGES.items():
        target, text = DOCS / name, page()
        if arguments != ["--check"]:
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            print(f"docs/{name} is out of date: run make docs")
            status = 1
    return status


PAGES = {
    "configuration.md": configuration_page,
    "structured_output.md": structured_page,
    "routes.md": routes_page,
}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
