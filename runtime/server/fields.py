"""Fields that generating routes of the OpenAI API share, and the `SamplingParams` they mean.

Invariants: a field is declared here or in its route's own struct, or it is refused by name; what
has no effect here is listed as such; a field that asks for something that cannot be done may only
be null. Values out of range are refused before anything is run.
"""

from __future__ import annotations

from typing import Any

import msgspec

from branchline.runtime.core.sampling_params import Constraint, SamplingParams, Whitespace
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.limits import Limits, check

Json = dict[str, Any]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a stream ends.

    Attributes:
        include_usage: one more chunk, with the counts of tokens.
        continuous_usage_stats: counts in every chunk.
        include_obfuscation: no effect.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`: one constraint."""

    json: Json | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Json | str | None = None


# size: GenerationFields: the body of an API that is not ours to divide
class GenerationFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common.

    The first block is OpenAI's; the second is SGLang's and vLLM's; the third has no effect here;
    fields of type None are known, and refused.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    speculative: bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: Json | str | None = None
    structural_tag: Json | str | None = None
    structured_outputs: StructuredOutputs | None = None
    whitespace: Whitespace | None = None
    guided_json: Json | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    priority: int | None = None
    rid: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    deadline_s: float | None = None
    return_token_ids: bool | None = None
    lora_path: str | None = None

    user: str | None = None
    metadata: Json | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    moderation: Any = None
    spaces_between_special_tokens: bool | None = None

    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None

    session_params: None = None
    custom_logit_processor: None = None
    custom_params: None = None
    bad_words: None = None
    allowed_token_ids: None = None
    use_beam_search: None = None
    guided_whitespace_pattern: None = None


NO_EFFECT = frozenset(
    [
        "abort_message",
        "budget_tokens",
        "background",
        "cache_control",
        "conversation_id",
        "custom_labels",
        "diagnostics",
        "display",
        "effort",
        "generate_summary",
        "guided_decoding_backend",
        "include",
        "include_obfuscation",
        "inference_geo",
        "log_metrics",
        "lora_int_id",
        "metadata",
        "modalities",
        "moderation",
        "no_logs",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "routing_key",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "speed",
        "store",
        "stream_interval",
        "stream_reasoning",
        "strict",
        "summary",
        "user",
        "user_profile_id",
        "verbosity",
        "workspace_id",
    ]
)
"""Fields that are taken and change nothing."""


def sampling_of(
    fields: GenerationFields,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The parameters that `fields` ask for.

    Args:
        max_tokens: None = as many as the context holds.

    Raises:
        InvalidRequest: a value is out of range or beyond a limit; names it.
    """
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    stop_ids = tuple(fields.stop_token_ids or ())
    return checked(
        SamplingParams(
            temperature=_or(fields.temperature, 1.0),
            top_p=_or(fields.top_p, 1.0),
            top_k=top_k_of(fields.top_k),
            min_p=_or(fields.min_p, 0.0),
            max_tokens=max_tokens,
            min_tokens=_or(fields.min_tokens, 0),
            stop=stop,
            stop_token_ids=stop_ids,
            stop_regex=fields.stop_regex or None,
            keep_stop=bool(fields.include_stop_str_in_output or fields.no_stop_trim),
            frequency_penalty=_or(fields.frequency_penalty, 0.0),
            presence_penalty=_or(fields.presence_penalty, 0.0),
            repetition_penalty=_or(fields.repetition_penalty, 1.0),
            logit_bias=bias_of(fields.logit_bias),
            seed=fields.seed,
            n=_or(fields.n, 1),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            ignore_eos=bool(fields.ignore_eos),
            constraint=constraint,
            skip_special_tokens=fields.skip_special_tokens is not False,
            speculative=fields.speculative,
        ),
        limits,
    )


def checked(sampling: SamplingParams, limits: Limits) -> SamplingParams:
    """`sampling`; raises `InvalidRequest` where it is out of range or beyond a limit."""
    check("max_n", "n", sampling.n, limits.max_n)
    check("max_stops", "the number of stops", len(sampling.stop), limits.max_stops)
    check(
        "max_stops", "the number of stop_token_ids", len(sampling.stop_token_ids), limits.max_stops
    )
    for asked in (sampling.logprobs, sampling.prompt_logprobs):
        check("max_logprobs", "the number of logprobs", asked or 0, limits.max_logprobs)
    biases = len(sampling.logit_bias or {})
    check("max_logit_bias", "the number of logit_bias entries", biases, limits.max_logit_bias)
    return sampling.validate()


def top_k_of(value: int | None) -> int:
    """0 and -1 both mean off in other servers."""
    return -1 if value in (None, 0) else value


def bias_of(biases: dict[str, float] | None) -> dict[int, float] | None:
    """Token ids are strings in JSON objects."""
    if not biases:
        return None
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        raise Refused(
            400, "logit_bias: keys are token ids", param="logit_bias", value=str(error)
        ) from error


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
