"""Parser and dispatch. Knows names and help texts; imports a command only when it is called.

`branchline --help` must answer at once, so nothing here imports torch, the language or rich.

Exit status: 0 done, 1 it failed, 2 it was asked wrongly, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

from branchline.cli.options import add_engine_flags, add_limit_flag
from branchline.cli.server_settings import FLAG_SECTIONS, LIMIT_SECTIONS
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
    _add_run(commands.add_parser("run", help="run a program of a file, live in the terminal"))
    demo = commands.add_parser("demo", help="the tour of the examples")
    demo.add_argument(
        "only", nargs="*", metavar="EXAMPLE", help='e.g. "02"; all when none is named'
    )
    add_engine_flags(demo)
    demo.set_defaults(target="branchline.cli.demo:demo")
    _add_models(commands.add_parser("models", help="list, fetch and find models"))
    _add_serve(commands.add_parser("serve", help="run the engine as a service"))
    _add_bench(commands.add_parser("bench", help="measure"))
    env = commands.add_parser("env", help="versions, CPU, native kernels, model cache")
    env.add_argument("--json", action="store_true", help="one JSON document")
    env.set_defaults(target="branchline.cli.env:env")
    return parser


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
    parser.usage = "branchline serve [--config FILE.toml] [--SETTING X ...]"
    parser.add_argument(
        "--config", metavar="FILE.toml", help="settings, one table a group below; flags win"
    )
    add_engine_flags(parser, FLAG_SECTIONS)
    add_limit_flag(parser, LIMIT_SECTIONS)
    parser.set_defaults(target="branchline.cli.serve:serve")


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="models of the catalog and where they are")
    listing.set_defaults(target="branchline.cli.models:list_models")
    for name, text in (("pull", "fetch a model"), ("path", "print where a fetched model is")):
        action = actions.add_parser(name, help=text)
        action.add_argument("model", help='catalog name, e.g. "smollm2-135m"')
        action.set_defaults(target=f"branchline.cli.models:{name}")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    texts = {
        "offline": "fixed workloads of token ids through the engine",
        "programs": "whole programs: time, forwards per token, reuse of the cache",
        "grammar": "constrained beside free text, compile and mask times, JSON Schemas",
        "serve": "load on a server of its own: latency, throughput, soak",
        "serve-programs": "programs on a server beside the same work as OpenAI requests",
        "start": "process start to first token, and peak memory",
        "scheduler": "overhead of a step, cost per queued request",
        "processes": "an engine in processes of its own against one in this process",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("--repeats", type=int, default=3, help="timed runs (default 3)")
        if name in ("offline", "programs", "serve", "serve-programs"):
            action.add_argument(
                "--workload",
                action="append",
                metavar="NAME",
                help='may be repeated; "list" names them; default: those that suit a CPU; "gpu": '
                "those that suit a GPU",
            )
        if name == "offline":
            action.add_argument(
                "--profile", action="store_true", help="once more under a profiler: where time goes"
            )
        if name in ("programs", "serve-programs"):
            most = 16 if name == "programs" else 64
            action.add_argument(
                "--at-once",
                type=int,
                default=most,
                metavar="N",
                help=f"programs at once (default {most})",
            )
        if name == "serve":
            _add_bench_serve(action)
        if name == "serve-programs":
            action.add_argument(
                "--delay-ms",
                type=float,
                default=5.0,
                metavar="MS",
                help="delay added to each direction of the network (default 5)",
            )
        if name == "processes":
            action.add_argument(
                "--streams", type=int, default=64, metavar="N", help="at once (default 64)"
            )
        if name == "grammar":
            action.add_argument(
                "--at-once", type=int, default=16, metavar="N", help="requests at once (default 16)"
            )
            action.add_argument(
                "--schemas",
                metavar="FILE.jsonl",
                help='JSON lines with "id", "schema" and maybe "tests"; default: a small fixed set',
            )
            action.add_argument(
                "--isolation",
                action="store_true",
                help="also time a stream beside hostile constraints",
            )
        if name == "scheduler":
            action.add_argument(
                "--queued", type=int, nargs="+", default=[100, 1000, 10_000], metavar="N"
            )
        add_engine_flags(action)
        action.set_defaults(target=f"branchline.cli.bench:{name.replace('-', '_')}")


def _add_bench_serve(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="open loop: R requests a second, arriving at random (Poisson)",
    )
    action.add_argument(
        "--at-once", type=int, metavar="N", help="closed loop: N requests always open (default 64)"
    )
    action.add_argument(
        "--requests", type=int, default=128, metavar="N", help="of one round (default 128)"
    )
    action.add_argument(
        "--against-engine",
        action="store_true",
        help="what HTTP costs: the same ids on an engine in this process and on the server",
    )
    action.add_argument(
        "--soak-s",
        type=float,
        metavar="S",
        help="saturate the server for S seconds, with clients that leave; then check for leaks",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
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
        hint = 'Install the runtime: pip install "branchline[runtime]"'
        report(
            BranchlineError(f"the module {error.name!r} is not installed.", hint=hint), sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): not an error, but stdout must not be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def report(error: BranchlineError, stream: TextIO) -> None:
    """One red line that says what failed, then what to do about it."""
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    red, dim, plain = ("\033[31m", "\033[2m", "\033[0m") if colour else ("", "", "")
    hint, error.hint = error.hint, ""
    print(f"{red}error: {error}{plain}", file=stream)
    error.hint = hint
    if hint:
        print(f"{dim}hint: {hint}{plain}", file=stream)
