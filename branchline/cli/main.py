"""Parser and dispatch. Knows names and help texts; imports a command only when it is called.

`branchline --help` must answer at once, so nothing here imports torch, the language or rich.

Exit status: 0 done, 1 it failed, 2 it was asked wrongly, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from branchline.cli.bench_flags import add_benches
from branchline.cli.options import ShortUsage, add_engine_flags, add_limit_flag, setting_flags
from branchline.cli.server_settings import FLAG_SECTIONS, LIMIT_SECTIONS
from branchline.cli.train_flags import add_train_flags
from branchline.runtime.errors import BranchlineError, InvalidRequest, ProgramError

RUNTIME_PACKAGES = frozenset(
    {
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "gguf",
        "llguidance",
        "safetensors",
        "psutil",
        "zmq",
        "jinja2",
    }
)
EPILOG = """\
examples:
  branchline demo                                   the tour: every example on the default model
  branchline run examples/01_hello.py --arg name=Ada
  branchline models pull smollm2-135m
  branchline serve --model smollm2-135m --port 30000
  branchline bench offline --threads 2
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="branchline",
        description="Programs over language models, run next to the KV cache.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_run(_command(commands, "run", "run a program of a file, live in the terminal"))
    demo = _command(commands, "demo", "the tour of the examples")
    demo.add_argument(
        "only", nargs="*", metavar="EXAMPLE", help='e.g. "02"; all when none is named'
    )
    add_engine_flags(demo)
    demo.set_defaults(target="branchline.cli.demo:demo")
    _add_models(_command(commands, "models", "list, fetch and find models"))
    _add_serve(_command(commands, "serve", "run the engine as a service"))
    add_benches(
        _command(commands, "bench", "measure speed, memory, and what waiting costs"), _command
    )
    add_train_flags(
        _command(commands, "train-eagle", "train an EAGLE-3 head, a draft, for a model")
    )
    env = _command(commands, "env", "versions, CPU, native kernels, model cache")
    env.add_argument("--json", action="store_true", help="one JSON document")
    env.set_defaults(target="branchline.cli.env:env")
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """A command whose own help says what it does, and whose usage leaves the settings out."""
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", formatter_class=ShortUsage
    )
    return made


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE[:FUNCTION]", help="Python file with a @function")
    parser.add_argument(
        "--arg",
        dest="args",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the program; read as JSON unless the parameter is a str",
    )
    parser.add_argument("--trace", metavar="FILE.html", help="write the request graph as a page")
    parser.add_argument("--endpoint", metavar="URL", help="run on a branchline server instead")
    parser.add_argument("--plain", action="store_true", help="print the final text only")
    add_engine_flags(parser)
    parser.set_defaults(target="branchline.cli.run:run")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE.toml", help="settings, one table a group below; flags win"
    )
    add_engine_flags(parser, FLAG_SECTIONS)
    add_limit_flag(parser, LIMIT_SECTIONS)
    parser.set_defaults(target="branchline.cli.serve:serve")


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _command(actions, "list", "models of the catalog and where they are")
    listing.set_defaults(target="branchline.cli.models:list_models")
    for name, text in (("pull", "fetch a model"), ("path", "print where a fetched model is")):
        action = _command(actions, name, text)
        action.add_argument("model", help='catalog name, e.g. "smollm2-135m"')
        action.set_defaults(target=f"branchline.cli.models:{name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"branchline {version('branchline')}")
        return 0
    target: str = getattr(arguments, "target", "")
    if not target:
        parser.print_help()
        return 2
    module, _, name = target.partition(":")
    try:
        refuse_rest(arguments, rest)
        command: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(module), name
        )
        return command(arguments)
    except BranchlineError as error:
        if arguments.debug:
            traceback.print_exc()
        report(error, sys.stderr)
        return 2 if isinstance(error, InvalidRequest | ProgramError) else 1
    except ModuleNotFoundError as error:
        if arguments.debug or error.name not in RUNTIME_PACKAGES:
            raise
        hint = "Install the runtime: pip install 'branchline[runtime]'."
        missing = BranchlineError(f"the module {error.name!r} is not installed", hint=hint)
        report(missing, sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): not an error, but stdout must not be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def refuse_rest(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Raise `InvalidRequest` for words that no command takes; names the nearest setting."""
    if rest:
        flag = rest[0].partition("=")[0]
        near = difflib.get_close_matches(flag, setting_flags(arguments), n=1)
        raise InvalidRequest(
            f"{arguments.command} does not take this",
            value=" ".join(rest),
            hint=f"Did you mean {near[0]}?" if near else f"See branchline {arguments.command} -h.",
        )


def report(error: BranchlineError, stream: TextIO) -> None:
    """One red line that says what failed, then what to do about it."""
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    red, dim, plain = ("\033[31m", "\033[2m", "\033[0m") if colour else ("", "", "")
    hint, error.hint = error.hint, ""
    print(f"{red}error: {error}{plain}", file=stream)
    error.hint = hint
    if hint:
        print(f"{dim}hint: {hint}{plain}", file=stream)
