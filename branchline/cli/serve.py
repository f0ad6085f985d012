"""`branchline serve`: the engine as a service, in processes of its own.

This process listens, tokenizes and runs programs; it loads no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
from typing import TYPE_CHECKING, Any

from branchline.cli.server_keys import read_keys
from branchline.cli.server_settings import Choices, choices_of
from branchline.runtime.config import env
from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import BranchlineError, InvalidRequest
from branchline.runtime.ipc.short_turns import take_short_turns
from branchline.runtime.launch.remote_engine import RemoteEngine
from branchline.runtime.observability.logs import set_up_logs
from branchline.runtime.observability.tracing import Tracer
from branchline.runtime.server.app import create_app
from branchline.runtime.server.context import ServerContext, make_context
from branchline.runtime.server.keys import Keys
from branchline.runtime.server.run import Entrance, Stopping, check_address, run

if TYPE_CHECKING:
    from branchline.runtime.server.grpc_api.service import GrpcServer


def serve(arguments: argparse.Namespace) -> int:
    """Start, say where and with what, and serve until told to stop."""
    choices = choices_of(arguments)
    server = choices.server
    keys = read_keys(server)
    set_up_logs("json" if server.log_format == "json" else "text", server.log_level, "http")
    # What can be wrong is said now, not when a model has been loaded.
    grpc = _grpc_server(server)
    for port in (server.port, server.grpc_port):
        if port is not None:
            asyncio.run(check_address(server.host, port))
    tracer = _tracer()
    take_short_turns()
    _say(f"loading {choices.engine.get('model', 'the default model')}")
    failed: list[BranchlineError] = []
    stop_for: list[Any] = []

    def on_failed(error: BranchlineError) -> None:
        failed.append(error)
        for stop in stop_for:
            stop()

    # While the model loads, a service manager's stop is as good as Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine = RemoteEngine(choices.engine, server, on_failed)
    try:
        engine.start()
        for decision in engine.port.info()["decisions"]:
            _say(f"  {decision['setting']} = {decision['value']}: {decision['why']}")
        drained = asyncio.run(_serve(engine, choices, keys, tracer, stop_for, grpc))
    finally:
        signal.signal(signal.SIGTERM, before)
        engine.close()
        if tracer is not None:
            tracer.close()
    if failed:
        raise failed[0]
    _say("stopped" if drained else "stopped before everything was finished")
    return 0 if drained else 1


async def _serve(
    engine: RemoteEngine,
    choices: Choices,
    keys: Keys,
    tracer: Tracer | None,
    stop_for: list[Any],
    grpc_server: type[GrpcServer] | None,
) -> bool:
    server = choices.server
    loop, stopping = asyncio.get_running_loop(), Stopping()
    stop_for.append(lambda: loop.call_soon_threadsafe(stopping.fail))
    loop.add_signal_handler(signal.SIGTERM, stopping.ask)
    loop.add_signal_handler(signal.SIGINT, stopping.insist)

    def health() -> str:
        return "the server is stopping" if stopping.asked.is_set() else engine.health()

    context: ServerContext = make_context(
        engine.port,
        engine.text.tokenizer,
        chat=engine.text.template,
        model_names=_names(server),
        limits=choices.limits,
        program_limits=choices.program_limits,
        keys=keys,
        health=health,
        tracer=tracer,
        adapter_dirs=_folders(server),
    )
    app = create_app(context)
    entrance = Entrance(app)
    grpc = None if grpc_server is None else await _start_grpc(grpc_server, context, server)
    try:
        return await run(
            app,
            context,
            stopping,
            entrance=entrance,
            host=server.host,
            port=server.port,
            drain_timeout_s=server.drain_timeout_s,
            listening=lambda url: _listening(url, server, keys),
            calls=grpc,
        )
    finally:
        context.executor.close()


def _grpc_server(server: ServerSection) -> type[GrpcServer] | None:
    """The gRPC server, if one was asked for.

    Raises:
        InvalidRequest: its packages are not installed.
    """
    if server.grpc_port is None:
        return None
    try:
        from branchline.runtime.server.grpc_api.service import GrpcServer
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            "gRPC needs packages that are not installed",
            value=error.name,
            hint="Install them: pip install 'branchline[grpc]'.",
        ) from error
    return GrpcServer


async def _start_grpc(
    kind: type[GrpcServer], context: ServerContext, server: ServerSection
) -> GrpcServer:
    host = f"[{server.host}]" if ":" in server.host else server.host
    made = kind(context, f"{host}:{server.grpc_port}")
    await made.start()
    _say(f"gRPC at {host}:{made.port}")
    return made


def _tracer() -> Tracer | None:
    """Where spans go, if the environment names a collector."""
    endpoint = env.read("OTEL_EXPORTER_OTLP_ENDPOINT")
    return Tracer(endpoint) if endpoint else None


def _listening(url: str, server: ServerSection, keys: Keys) -> None:
    if not keys.needed and not _is_loopback(server.host):
        _say("warning: everybody who can reach this address may use the server; see api_key_file")
    _say(f"serving at {url}")


def _names(server: ServerSection) -> tuple[str, ...]:
    names = (server.served_model_name or "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def _folders(server: ServerSection) -> tuple[str, ...]:
    """Folders to load adapters from."""
    return tuple(folder for folder in (server.adapter_dirs or "").split(os.pathsep) if folder)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(line: str) -> None:
    print(line, flush=True)
