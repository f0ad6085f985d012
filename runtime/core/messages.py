"""What enters the engine; crosses sockets as msgpack. Needs neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from branchline.runtime.core.sampling_params import SamplingParams

Pooling = Literal["last", "mean"]
"""How the hidden states of a prompt become one vector."""


class PromptRequest(msgspec.Struct, kw_only=True):
    """What every request says of itself and of its prompt.

    Attributes:
        prompt_ids: at least one id.
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
    namespace: str = ""
    adapter: str = ""
    priority: int = 0
    deadline: float | None = None
    program_id: str = ""
    lane_id: str = ""
    name: str = ""


class GenerateRequest(PromptRequest, kw_only=True, tag=True):
    """Continue the prompt.

    Attributes:
        stream: send a `GenerateDelta` as text becomes final; else one `GenerateResult` at the end.
    """

    sampling: SamplingParams
    stream: bool = False


class ScoreRequest(PromptRequest, kw_only=True, tag=True):
    """Log-probabilities of each choice's tokens after the prompt, all in one tree forward.

    Attributes:
        choices: token ids of each choice; none empty; common prefixes are computed once.
    """

    choices: list[list[int]]


class EmbedRequest(PromptRequest, kw_only=True, tag=True):
    """One vector for the prompt: the model's final hidden states, after its last norm.

    Attributes:
        pooling: "last" takes the state of the last token; "mean" the average over all tokens, for
            which the whole prompt is computed: nothing of it comes from the prefix cache.
        normalize: scale the vector to length 1.
        dimensions: keep this many numbers, from the first on, before it is scaled; None = all.
    """

    pooling: Pooling = "last"
    normalize: bool = True
    dimensions: int | None = None


EngineRequest = GenerateRequest | ScoreRequest | EmbedRequest
