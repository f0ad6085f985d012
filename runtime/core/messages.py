"""What enters the engine; crosses sockets as msgpack. Needs neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from branchline.runtime.core.sampling_params import SamplingParams

Pooling = Literal["last", "mean"]
"""How the hidden states of a prompt become one vector."""


class GenerateRequest(msgspec.Struct, kw_only=True, tag=True):
    """Continue `prompt_ids`.

    Attributes:
        prompt_ids: at least one id.
        stream: send a `GenerateDelta` as text becomes final; else one `GenerateResult` at the end.
        namespace: prefix-cache namespace (media, tenant salt); adapters have their own within it.
        adapter: name of the adapter that it runs with; "" = the base model.
        priority: larger runs first under the priority policy.
        deadline: `time.monotonic()` value after which the request ends with reason "deadline".
        program_id: program it belongs to; requests of one program are kept near in time.
        lane_id: lane whose lease follows the result, so that its prefix stays in the cache.
        name: variable it computes (for scripted engines and logs).
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    stream: bool = False
    namespace: str = ""
    adapter: str = ""
    priority: int = 0
    deadline: float | None = None
    program_id: str = ""
    lane_id: str = ""
    name: str = ""


class ScoreRequest(msgspec.Struct, kw_only=True, tag=True):
    """Log-probabilities of each choice's tokens after `prompt_ids`, all in one tree forward.

    Attributes:
        prompt_ids: at least one id.
        choices: token ids of each choice; none empty; common prefixes are computed once.
    """

    id: str
    prompt_ids: list[int]
    choices: list[list[int]]
    namespace: str = ""
    adapter: str = ""
    priority: int = 0
    deadline: float | None = None
    program_id: str = ""
    lane_id: str = ""
    name: str = ""


class EmbedRequest(msgspec.Struct, kw_only=True, tag=True):
    """One vector for `prompt_ids`: the model's final hidden states, after its last norm.

    Attributes:
        prompt_ids: at least one id.
        pooling: "last" takes the state of the last token; "mean" the average over all tokens, for
            which the whole prompt is computed: nothing of it comes from the prefix cache.
        normalize: scale the vector to length 1.
        dimensions: keep this many numbers, from the first on, before it is scaled; None = all.
    """

    id: str
    prompt_ids: list[int]
    pooling: Pooling = "last"
    normalize: bool = True
    dimensions: int | None = None
    namespace: str = ""
    adapter: str = ""
    priority: int = 0
    deadline: float | None = None
    program_id: str = ""
    lane_id: str = ""
    name: str = ""


EngineRequest = GenerateRequest | ScoreRequest | EmbedRequest
