"""`branchline bench …`: hands the flags to the benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path

from branchline.cli.options import engine_settings
from branchline.runtime.errors import InvalidRequest


def offline(arguments: argparse.Namespace) -> int:
    """Fixed workloads of token ids."""
    if arguments.workload == ["list"]:
        from branchline.runtime.bench.workloads import WORKLOADS

        for workload in WORKLOADS.values():
            print(f"{workload.name:<12}{workload.about}{'  (CPU default)' * workload.cpu}")
        return 0
    from branchline.runtime.bench.offline import offline as run

    run(
        engine_settings(arguments),
        workloads=arguments.workload,
        repeats=arguments.repeats,
        profile=arguments.profile,
    )
    return 0


def programs(arguments: argparse.Namespace) -> int:
    """Whole programs."""
    from branchline.bench.programs import programs as run

    run(
        engine_settings(arguments),
        names=arguments.workload,
        at_once=arguments.at_once,
        repeats=arguments.repeats,
    )
    return 0


def grammar(arguments: argparse.Namespace) -> int:
    """What structure costs."""
    from branchline.runtime.bench.grammar import grammar as run

    run(
        engine_settings(arguments),
        schemas=arguments.schemas,
        at_once=arguments.at_once,
        repeats=arguments.repeats,
        with_isolation=arguments.isolation,
    )
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """Load on a server of its own: workloads, beside the engine alone, or for long."""
    settings = engine_settings(arguments)
    streams = 64 if arguments.at_once is None else arguments.at_once
    modes = {"--rate": arguments.rate, "--soak-s": arguments.soak_s}
    given = [name for name, value in modes.items() if value is not None]
    given += ["--against-engine"] * arguments.against_engine
    if len(given) > 1 or (arguments.rate is not None and arguments.at_once is not None):
        raise InvalidRequest(
            "these flags exclude each other",
            value=" ".join([*given, *["--at-once"] * (arguments.at_once is not None)]),
            hint="Use --rate for an open loop, or --at-once for a closed one.",
        )
    if arguments.soak_s is not None:
        from branchline.bench.soak import soak

        return 0 if soak(settings, seconds=arguments.soak_s, at_once=streams)["passed"] else 1
    if arguments.against_engine:
        from branchline.bench.serve_overhead import against_engine

        against_engine(settings, streams=streams, repeats=arguments.repeats)
        return 0
    from branchline.bench.serve import serve as run

    found = run(
        settings,
        names=arguments.workload,
        rate=arguments.rate,
        at_once=streams,
        requests=arguments.requests,
        repeats=arguments.repeats,
    )
    return 1 if any(item["failed"] for item in found) else 0


def serve_programs(arguments: argparse.Namespace) -> int:
    """Programs on a server, and the same work as requests."""
    from branchline.bench.serve_programs import serve_programs as run

    run(
        engine_settings(arguments),
        names=arguments.workload,
        at_once=arguments.at_once,
        delay_s=arguments.delay_ms / 1000.0,
        repeats=arguments.repeats,
    )
    return 0


def adapters(arguments: argparse.Namespace) -> int:
    """Many adapters."""
    from branchline.runtime.bench.adapters import adapters as run

    run(
        engine_settings(arguments),
        registered=arguments.registered,
        distinct=arguments.distinct,
        at_once=arguments.at_once,
        rank=arguments.rank,
        targets=arguments.targets,
        prompt=arguments.prompt,
        repeats=arguments.repeats,
    )
    return 0


def speculative(arguments: argparse.Namespace) -> int:
    """Guessing ahead."""
    from branchline.runtime.bench.speculative import speculative as run

    run(
        engine_settings(arguments),
        drafters=arguments.drafters,
        tasks=arguments.tasks,
        batches=arguments.batches,
        temperatures=arguments.temperatures,
        outputs=arguments.outputs,
        tokens=arguments.tokens,
        prompts=None if arguments.prompts is None else Path(arguments.prompts),
        repeats=arguments.repeats,
    )
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Process start to first token."""
    from branchline.runtime.bench.start import start as run

    run(engine_settings(arguments), repeats=arguments.repeats)
    return 0


def scheduler(arguments: argparse.Namespace) -> int:
    """Overhead of the scheduler."""
    from branchline.runtime.bench.scheduler import scheduler as run

    run(engine_settings(arguments), queued=arguments.queued, repeats=arguments.repeats)
    return 0


def processes(arguments: argparse.Namespace) -> int:
    """Cost of processes."""
    from branchline.runtime.bench.processes import processes as run

    run(engine_settings(arguments), streams=arguments.streams, repeats=arguments.repeats)
    return 0
