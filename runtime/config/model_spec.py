"""`ModelSpec`: the facts of a model, whatever file format told them.

Invariant: a spec that exists is consistent (sizes positive, heads divisible by kv_heads, context
not longer than the window the weights were trained with), so no later room checks it again. This
module knows the key names of the two formats; it opens no file and knows nothing of tensors
beyond their names.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from branchline.runtime.errors import ModelLoadError

Activation = Literal["silu", "gelu", "gelu_tanh"]
AttentionBias = Literal["", "qkv", "qkvo"]
RopeKind = Literal["none", "linear", "llama3", "dynamic", "factors"]

SUPPORTED_ARCHITECTURES: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""Architecture names a spec can be made for; SmolLM, TinyLlama and Yi files say "llama"."""

_ARCHITECTURE_OF_CLASS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Far above any model; they keep a damaged file from asking for absurd amounts of work.
_LIMITS = {
    "num_layers": 4096,
    "hidden": 1 << 20,
    "ffn": 1 << 22,
    "heads": 1 << 16,
    "kv_heads": 1 << 16,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_context": 1 << 31,
}
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_GGUF_FILE_TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_k",
    11: "q3_k_s",
    12: "q3_k_m",
    13: "q3_k_l",
    14: "q4_k_s",
    15: "q4_k_m",
    16: "q5_k_s",
    17: "q5_k_m",
    18: "q6_k",
    32: "bf16",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies differ from `theta ** (-2 i / head_dim)`, i in [0, head_dim / 2).

    Attributes:
        kind: "none"; "linear" (every frequency / factor); "llama3" (long wavelengths / factor,
            short ones kept, blended between); "dynamic" (NTK-aware base, only past
            `original_context`; a context within it is unscaled); "factors" (frequency i divided
            by `factors[i]`, as GGUF files of Llama 3 carry them).
        factor: stretch of the context.
        low_freq_factor, high_freq_factor: llama3's band, in `original_context` / wavelength.
        original_context: tokens the weights were first trained with.
        factors: [head_dim / 2] divisors for "factors", else empty.
    """

    kind: RopeKind = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over the whole head (Su et al. 2021), halves rotated together."""

    theta: float = 10000.0
    scaling: RopeScaling = field(default_factory=RopeScaling)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Facts of a decoder-only model.

    Attributes:
        architecture: one of `SUPPORTED_ARCHITECTURES`.
        raw_architecture: the name the file itself uses.
        num_layers: decoder layers.
        hidden: width of the residual stream.
        ffn: width of the gated MLP.
        heads, kv_heads: query heads and key/value heads; `heads % kv_heads == 0`.
        head_dim: width of one head; not always hidden / heads.
        vocab_size: rows of the embedding.
        max_context: longest sequence in tokens that attends fully and correctly.
        rms_eps: epsilon of every RMS norm.
        rope: rotary base and scaling.
        tie_embeddings: the output head is the embedding; the file has no `lm_head.weight`.
        attention_bias: which of the q, k, v, o projections carry a bias ("" = none).
        mlp_bias: gate, up and down projections carry a bias.
        qk_norm: an RMS norm over head_dim on q and k, before the rotation.
        activation: of the gate.
        bos_id: start of sequence, if the model has one.
        eos_ids: ids that end a generation: end of text and end of a chat turn; ascending.
        file_dtype: most of the file's weights: "f32", "f16", "bf16", "q4_1", "q8_0", …
    """

    architecture: str
    num_layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    raw_architecture: str = ""
    rms_eps: float = 1e-5
    rope: RopeSpec = field(default_factory=RopeSpec)
    tie_embeddings: bool = False
    attention_bias: AttentionBias = ""
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: Activation = "silu"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    file_dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.architecture not in SUPPORTED_ARCHITECTURES:
            raise _unsupported(self.raw_architecture or self.architecture)
        for name, limit in _LIMITS.items():
            if not 0 < getattr(self, name) <= limit:
                raise _inconsistent(name, getattr(self, name), f"must be in [1, {limit}]")
        if self.heads % self.kv_heads:
            raise _inconsistent("heads", self.heads, f"is no multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise _inconsistent("head_dim", self.head_dim, "must be even for rotary embeddings")
        factors = self.rope.scaling.factors
        if factors and len(factors) != self.head_dim // 2:
            raise _inconsistent("rope factors", len(factors), f"must be {self.head_dim // 2} long")

    @property
    def q_size(self) -> int:
        """Rows of the query projection: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection and of the value projection: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim


def from_hf_config(
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    *,
    extra_eos: Collection[int] = (),
) -> ModelSpec:
    """The spec told by a Hugging Face `config.json`.

    Args:
        config: the parsed config.json.
        generation_config: the parsed generation_config.json; its end ids are added.
        extra_eos: further end ids, such as the chat-turn end of the tokenizer's own settings.

    Raises:
        ModelLoadError: unsupported architecture or setting, missing or inconsistent value.
    """
    raw, architecture = _hf_architecture(config)
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    max_context = _int(config, "max_position_embeddings")
    window = _hf_window(config, architecture)
    activation = str(config.get("hidden_act", "silu"))
    if activation not in _ACTIVATIONS:
        raise ModelLoadError(
            f"hidden_act {activation!r} is not supported.",
            hint=f"Supported: {', '.join(sorted(_ACTIVATIONS))}.",
        )
    bias: AttentionBias = "qkvo" if config.get("attention_bias", False) else ""
    if architecture == "qwen2":
        bias = "qkv"
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return ModelSpec(
        architecture=architecture,
        raw_architecture=raw,
        num_layers=_int(config, "num_hidden_layers"),
        hidden=hidden,
        ffn=_int(config, "intermediate_size"),
        heads=heads,
        kv_heads=_int(config, "num_key_value_heads", heads),
        head_dim=_int(
            config, "head_dim", 128 if architecture == "qwen3" else hidden // max(heads, 1)
        ),
        vocab_size=_int(config, "vocab_size"),
        max_context=min(max_context, window) if window else max_context,
        rms_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_hf_rope(config, max_context),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "qwen3",
        activation=_ACTIVATIONS[activation],
        bos_id=_first(_ids(config.get("bos_token_id"))),
        eos_ids=_merge_ids(
            _ids(config.get("eos_token_id")),
            _ids((generation_config or {}).get("eos_token_id")),
            extra_eos,
        ),
        file_dtype=_DTYPES.get(dtype.removeprefix("torch."), dtype),
    )


def from_gguf(
    metadata: Mapping[str, Any],
    tensor_names: Collection[str] = (),
    *,
    rope_factors: Sequence[float] = (),
    extra_eos: Collection[int] = (),
) -> ModelSpec:
    """The spec told by the key-value section of a GGUF file.

    Args:
        metadata: GGUF keys to plain values; token arrays may be left out when
            `llama.vocab_size` is there.
        tensor_names: names in the file; they tell whether the head is tied and where biases and
            q/k norms are. Empty: what the architecture usually has, with a tied head.
        rope_factors: values of `rope_freqs.weight`, [head_dim / 2], if the file has it.
        extra_eos: further end ids, such as a chat-turn end token found by its text.

    Raises:
        ModelLoadError: unsupported architecture or setting, missing or inconsistent value.
    """
    raw = str(metadata.get("general.architecture", ""))
    architecture = _gguf_architecture(raw)

    def key(name: str) -> str:
        return f"{raw}.{name}"

    hidden = _int(metadata, key("embedding_length"))
    heads = _int(metadata, key("attention.head_count"))
    head_dim = _int(metadata, key("attention.key_length"), hidden // max(heads, 1))
    rotary = _int(metadata, key("rope.dimension_count"), head_dim)
    if rotary != head_dim:
        raise ModelLoadError(
            f"{key('rope.dimension_count')} is {rotary} but heads are {head_dim} wide; "
            "a rotation of part of the head is not supported.",
        )
    context = _int(metadata, key("context_length"))
    tokens = metadata.get("tokenizer.ggml.tokens")
    names = set(tensor_names)
    return ModelSpec(
        architecture=architecture,
        raw_architecture=raw,
        num_layers=_int(metadata, key("block_count")),
        hidden=hidden,
        ffn=_int(metadata, key("feed_forward_length")),
        heads=heads,
        kv_heads=_int(metadata, key("attention.head_count_kv"), heads),
        head_dim=head_dim,
        vocab_size=_int(metadata, key("vocab_size"), len(tokens) if tokens is not None else None),
        max_context=min(context, _int(metadata, key("attention.sliding_window"), 0) or context),
        rms_eps=_float32(metadata.get(key("attention.layer_norm_rms_epsilon"), 1e-5)),
        rope=_gguf_rope(metadata, raw, context, rope_factors),
        tie_embeddings="output.weight" not in names,
        attention_bias=_gguf_bias(architecture, names),
        mlp_bias="blk.0.ffn_down.bias" in names,
        qk_norm="blk.0.attn_q_norm.weight" in names or architecture == "qwen3",
        bos_id=_first(_ids(metadata.get("tokenizer.ggml.bos_token_id"))),
        eos_ids=_merge_ids(
            _ids(metadata.get("tokenizer.ggml.eos_token_id")),
            _ids(metadata.get("tokenizer.ggml.eot_token_id")),
            _ids(metadata.get("tokenizer.ggml.eom_token_id")),
            extra_eos,
        ),
        file_dtype=_GGUF_FILE_TYPES.get(_int(metadata, "general.file_type", 0), "mixed"),
    )


def _hf_architecture(config: Mapping[str, Any]) -> tuple[str, str]:
    """(the file's own name, ours)."""
    classes = config.get("architectures") or []
    model_type = str(config.get("model_type", ""))
    for name in classes:
        if name in _ARCHITECTURE_OF_CLASS:
            return str(name), _ARCHITECTURE_OF_CLASS[name]
    if not classes and model_type in SUPPORTED_ARCHITECTURES:
        return model_type, model_type
    raise _unsupported(", ".join(map(str, classes)) or model_type)


def _gguf_architecture(raw: str) -> str:
    if raw not in SUPPORTED_ARCHITECTURES:
        raise _unsupported(raw)
    return raw


def _hf_window(config: Mapping[str, Any], architecture: str) -> int:
    """Width of a sliding window that is in force, 0 if none.

    Attention here is always full; within one window both are the same, so the context is capped.
    """
    if architecture == "mistral":
        return int(config.get("sliding_window") or 0)
    if config.get("use_sliding_window"):
        return int(config.get("sliding_window") or 0)
    return 0


def _hf_rope(config: Mapping[str, Any], max_context: int) -> RopeSpec:
    params: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(params.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = params.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelLoadError(
            "A rotation of part of the head is not supported.",
            value=f"partial_rotary_factor={partial}",
        )
    kind = str(params.get("rope_type") or params.get("type") or "default")
    if kind == "default":
        return RopeSpec(theta)
    if kind not in ("linear", "llama3", "dynamic"):
        raise ModelLoadError(
            f"Rope scaling {kind!r} is not supported.",
            hint="Supported: default, linear, llama3, dynamic.",
        )
    original = int(params.get("original_max_position_embeddings") or max_context)
    scaling = RopeScaling(
        kind=kind,  # type: ignore[arg-type]  # narrowed by the membership test above
        factor=_positive(params, "factor"),
        original_context=original,
    )
    if kind == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=scaling.factor,
            low_freq_factor=_positive(params, "low_freq_factor"),
            high_freq_factor=_positive(params, "high_freq_factor"),
            original_context=original,
        )
    return RopeSpec(theta, scaling)


def _gguf_rope(
    metadata: Mapping[str, Any], raw: str, context: int, factors: Sequence[float]
) -> RopeSpec:
    theta = _float32(metadata.get(f"{raw}.rope.freq_base", 10000.0))
    if len(factors):
        divisors = tuple(float(x) for x in factors)
        return RopeSpec(theta, RopeScaling(kind="factors", factors=divisors))
    kind = str(metadata.get(f"{raw}.rope.scaling.type", "none"))
    factor = float(
        metadata.get(
            f"{raw}.rope.scaling.factor",
            # files written before the scaling type existed only gave a linear scale
            metadata.get(f"{raw}.rope.scale_linear", 1.0),
        )
    )
    if kind == "none" and factor in (0.0, 1.0):
        return RopeSpec(theta)
    if kind not in ("none", "linear") or factor <= 0:
        raise ModelLoadError(
            f"Rope scaling {kind!r} with factor {factor} is not supported.",
            hint="Supported in GGUF files: none, linear, and a rope_freqs.weight tensor.",
        )
    original = _int(metadata, f"{raw}.rope.scaling.original_context_length", context)
    return RopeSpec(theta, RopeScaling(kind="linear", factor=factor, original_context=original))


def _gguf_bias(architecture: str, names: Collection[str]) -> AttentionBias:
    if not names:
        return "qkv" if architecture == "qwen2" else ""
    if "blk.0.attn_q.bias" not in names:
        return ""
    return "qkvo" if "blk.0.attn_output.bias" in names else "qkv"


def _float32(value: Any) -> float:
    """A float32 read from a file as the shortest decimal that means the same float32.

    1e-05 is stored as 9.99999974e-06; both round to the same float32, but the first is what the
    model's authors wrote and what a float64 computation should use.
    """
    stored = struct.pack("<f", float(value))
    for digits in range(6, 10):
        text = f"{float(value):.{digits}g}"
        if struct.pack("<f", float(text)) == stored:
            return float(text)
    return float(value)


def _int(source: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = source.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelLoadError(
            f"The model file does not say {key!r}.",
            hint="It is damaged or of an unknown kind; fetch it again.",
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelLoadError(f"{key!r} must be one whole number.", value=value)
    return value


def _positive(params: Mapping[str, Any], key: str) -> float:
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelLoadError(f"Rope scaling needs a positive {key!r}.", value=value or "nothing")
    return float(value)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(x) for x in value] if isinstance(value, Iterable) else [int(value)]


def _first(ids: Sequence[int]) -> int | None:
    return ids[0] if ids else None


def _merge_ids(*groups: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({i for group in groups for i in group if i >= 0}))


def _unsupported(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"Models of architecture {name or 'unknown'!r} are not supported.",
        hint=f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}.",
        value=name or None,
    )


def _inconsistent(name: str, value: object, why: str) -> ModelLoadError:
    return ModelLoadError(f"The model's {name} {value} {why}.", hint="The model file is damaged.")
