"""Programs over language models, run next to the KV cache.

The public names, each loaded when it is first used: importing `branchline` imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchline.lang.api import call, function, gen, select
    from branchline.lang.backends.base import set_default_backend
    from branchline.lang.backends.endpoint import Endpoint, RuntimeEndpoint
    from branchline.lang.backends.engine import Engine, Runtime
    from branchline.lang.backends.mock import Mock
    from branchline.lang.backends.openai import OpenAI
    from branchline.lang.compat import (
        flush_cache,
        gen_int,
        gen_string,
        get_server_info,
        greedy_token_selection,
        separate_reasoning,
        token_length_normalized,
        unconditional_likelihood_normalized,
    )
    from branchline.lang.constraints import (
        capture,
        choices,
        ebnf,
        json_schema,
        lark,
        optional,
        regex,
        repeat,
        seq,
        structural_tag,
        until,
    )
    from branchline.lang.errors import (
        AdapterError,
        BackendError,
        BranchlineError,
        Cancelled,
        ConstraintError,
        DeadlineExceeded,
        InvalidRequest,
        ProgramError,
        TruncatedError,
        UnsupportedConstraint,
        UnsupportedFeature,
    )
    from branchline.lang.events import Done, ReasoningDelta, TextDelta, ToolCall, VariableReady
    from branchline.lang.expressions import Expression
    from branchline.lang.fork import Forks, fork
    from branchline.lang.graph_run import run_graph
    from branchline.lang.matching import Match, match
    from branchline.lang.program import Program
    from branchline.lang.roles import (
        assistant,
        assistant_begin,
        assistant_end,
        system,
        system_begin,
        system_end,
        tool,
        tool_begin,
        tool_end,
        tool_result,
        user,
        user_begin,
        user_end,
    )
    from branchline.lang.state import State
    from branchline.lang.tools import Reply, Tool, ToolFailure
    from branchline.runtime.programs.graph import RequestGraph

__version__ = "0.1.0"

_MODULES = {
    "lang.api": "call function gen select",
    "lang.backends.base": "set_default_backend",
    "lang.backends.endpoint": "Endpoint RuntimeEndpoint",
    "lang.backends.engine": "Engine Runtime",
    "lang.backends.mock": "Mock",
    "lang.backends.openai": "OpenAI",
    "lang.compat": "flush_cache gen_int gen_string get_server_info greedy_token_selection "
    "separate_reasoning token_length_normalized unconditional_likelihood_normalized",
    "lang.constraints": "capture choices ebnf json_schema lark optional regex repeat seq "
    "structural_tag until",
    "lang.errors": "AdapterError BackendError BranchlineError Cancelled ConstraintError "
    "DeadlineExceeded InvalidRequest ProgramError TruncatedError UnsupportedConstraint "
    "UnsupportedFeature",
    "lang.events": "Done ReasoningDelta TextDelta ToolCall VariableReady",
    "lang.expressions": "Expression",
    "lang.matching": "Match match",
    "lang.fork": "Forks fork",
    "lang.graph_run": "run_graph",
    "lang.program": "Program",
    "lang.roles": "assistant assistant_begin assistant_end system system_begin system_end tool "
    "tool_begin tool_end tool_result user user_begin user_end",
    "lang.state": "State",
    "lang.tools": "Reply Tool ToolFailure",
    "runtime.programs.graph": "RequestGraph",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "AdapterError",
    "BackendError",
    "BranchlineError",
    "Cancelled",
    "ConstraintError",
    "DeadlineExceeded",
    "Done",
    "Endpoint",
    "Engine",
    "Expression",
    "Forks",
    "InvalidRequest",
    "Match",
    "Mock",
    "OpenAI",
    "Program",
    "ProgramError",
    "ReasoningDelta",
    "Reply",
    "RequestGraph",
    "Runtime",
    "RuntimeEndpoint",
    "State",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolFailure",
    "TruncatedError",
    "UnsupportedConstraint",
    "UnsupportedFeature",
    "VariableReady",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "call",
    "capture",
    "choices",
    "ebnf",
    "flush_cache",
    "fork",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "json_schema",
    "lark",
    "match",
    "optional",
    "regex",
    "repeat",
    "run_graph",
    "select",
    "separate_reasoning",
    "seq",
    "set_default_backend",
    "structural_tag",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "tool",
    "tool_begin",
    "tool_end",
    "tool_result",
    "unconditional_likelihood_normalized",
    "until",
    "user",
    "user_begin",
    "user_end",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'branchline' has no attribute {name!r}")
    value = getattr(import_module(f"branchline.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
