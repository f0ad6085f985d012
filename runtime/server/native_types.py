"""Bodies of the native routes, named as in SGLang. The schema of each is its struct."""

from __future__ import annotations

import msgspec

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.server.fields import Json


# size: NativeSampling: the body of an API that is not ours to divide
class NativeSampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of `/generate`."""

    max_new_tokens: int | None = 128
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    n: int | None = None
    sampling_seed: int | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    speculative: bool | None = None
    json_schema: str | Json | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | Json | None = None
    whitespace: Whitespace | None = None

    spaces_between_special_tokens: bool | None = None
    stream_interval: int | None = None
    beam_width: None = None
    custom_params: None = None
    watermark: None = None


# size: GenerateBody: the body of an API that is not ours to divide
class GenerateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /generate`: one prompt or a list of them, as text or as ids."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool = False
    priority: int | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    deadline_s: float | None = None
    lora_path: str | list[str | None] | None = None

    log_metrics: bool | None = None
    no_logs: bool | None = None
    background: bool | None = None
    conversation_id: str | None = None
    routing_key: str | None = None
    custom_labels: Json | None = None
    return_prompt_token_ids: bool | None = None

    input_embeds: None = None
    image_data: None = None
    video_data: None = None
    audio_data: None = None
    modalities: None = None
    session_params: None = None
    session_id: None = None
    lora_id: None = None
    token_ids_logprob: None = None
    custom_logit_processor: None = None
    return_hidden_states: bool | None = None


class AbortBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /abort_request`: every running request whose id begins with `rid`; or all."""

    rid: str = ""
    abort_all: bool = False
    abort_message: str | None = None
