"""Write what is generated of the documents and of the web page; `--check`: is it current?

configuration.md comes from runtime/config, routes.md from runtime/server, structured_output.md from
the tables in runtime/grammar, the examples from the programs in page_examples.py, the pictures
and the README's table of figures from docs/benchmarks.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import figures
import metrics_page
import page_examples
import route_tables
from structured_page import page as structured_page

from branchline.cli.server_settings import SERVER_SECTIONS
from branchline.runtime.config.env import VARIABLES
from branchline.runtime.config.sections import SECTIONS, all_settings, title_of

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
# Configuration

<!-- Written by `make docs` from runtime/config and runtime/server/limits.py: edit those. -->

Every setting has one name, the same everywhere: `bl.Engine(dtype="float32")` in Python and
`--dtype float32` on the command line (`branchline run`, `demo` and `bench`). An unknown name or an
impossible value is an error that says what to use. "auto" and `None` mean: decide for me; what was
decided, and why, is in `engine.info()`, and `branchline serve` prints it when it starts.

`branchline serve` has more of them, below, and reads them from a file too: `--config FILE.toml`
with one table for each group (`[model]`, `[server]`, …). Flags win over the file.
"""


def configuration() -> str:
    """The page of settings."""
    parts = [HEAD]
    for section in SERVER_SECTIONS:
        about = (section.__doc__ or "").partition("\n")[0]
        about += "" if section in SECTIONS else " Of `branchline serve` alone."
        parts.append(f"\n## {title_of(section)}\n\n{about}\n")
        parts.append("\n| setting | type | default | meaning |\n|---|---|---|---|\n")
        for _, item in all_settings([section]).values():
            kind = str(item.type).replace("|", "\\|")
            default = f"`{item.default!r}`".replace("'", '"')
            text = str(item.metadata["help"]).replace("|", "\\|")
            parts.append(f"| `{item.name}` | `{kind}` | {default} | {text} |\n")
    parts.append("\n## Environment variables\n\nNo other one is read.\n")
    parts.append("\n| variable | meaning |\n|---|---|\n")
    parts += [f"| `{name}` | {text} |\n" for name, text in VARIABLES.items()]
    return "".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    "docs/metrics.md": metrics_page.page,
    "docs/routes.md": route_tables.page,
    "docs/structured_output.md": structured_page,
    **{
        f"runtime/server/page/example-{name}.json": partial(page_examples.example, name)
        for name in page_examples.EXAMPLES
    },
    **{name: partial(figures.of_page, name) for name in figures.FILES},
}


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` only compare, 1 if one is out of date."""
    status = 0
    for name, write in PAGES.items():
        text, target = write(), ROOT / name
        if arguments != ["--check"]:
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            print(f"{name} is out of date: run make docs")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
