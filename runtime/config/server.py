"""What an operator may choose for a server beside its engine: one section, as the engine's are."""

from __future__ import annotations

from dataclasses import dataclass

from branchline.runtime.config.sections import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSection:
    """Where the server listens, who may ask, and how its processes are watched."""

    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0 = every network, see keys")
    port: int = setting(30000, "port to listen at; 0 = any free one, printed at the start")
    served_model_name: str | None = setting(
        None, "name of the model for clients, or several with commas; None = its own name"
    )
    api_key_file: str | None = setting(
        None, "file with one API key a line; beside BRANCHLINE_API_KEY. None = open to all"
    )
    admin_key_file: str | None = setting(
        None, "file with the admin key; beside BRANCHLINE_ADMIN_KEY. None = no admin routes"
    )
    adapter_dirs: str | None = setting(
        None,
        "folders, several with ':', below which admins may load adapters by path; None = none",
    )
    drain_timeout_s: float = setting(
        60.0, "seconds that running requests get to finish when the server is told to stop"
    )
    hang_timeout_s: float = setting(
        300.0, "seconds without a finished step, or a sign of life, until a process is restarted"
    )
    start_timeout_s: float = setting(
        900.0, "seconds from the start of the processes to the first token"
    )
    max_restarts: int = setting(
        5, "restarts within ten minutes until the server gives up and exits with status 1"
    )
    grpc_port: int | None = setting(
        None, "port for the engine's calls over gRPC, at the same host; None = none"
    )
    log_level: str = setting("info", '"debug", "info", "warning" or "error"')
    log_format: str = setting("text", 'log lines: "text" for people, "json" for machines')
