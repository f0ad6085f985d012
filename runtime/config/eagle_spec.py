"""`EagleSpec`: the facts of a draft head of the EAGLE family, and how its config.json tells them.

Invariant: a spec that exists is consistent in itself; whether it fits a target is for the head to
say. The file format is that of the authors' own checkpoints and of the engines that read them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from branchline.runtime.config.model_spec import ModelSpec, from_hf_config
from branchline.runtime.errors import ModelLoadError

Version = Literal[1, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSpec:
    """Facts of a head: one decoder layer that reads the target's states.

    Attributes:
        version: 1 reads the target's final normed state beside the token's embedding (EAGLE and
            EAGLE-2, Li et al., 2024); 3 reads states after several layers (EAGLE-3, Li et al.,
            2025).
        layer: sizes, norms and rotation of its layer; `vocab_size` is the target's.
        target_hidden: width of the states that it reads.
        draft_vocab: ids it can propose.
        feature_layers: indices of the target's layers after which version 3 reads; empty = the
            usual ones for the target's depth.
        own_embedding: has an embedding; else the target's.
        own_head: has an output head; else the target's, or rows of it.
        mapped: proposes ids of a smaller vocabulary.
        input_norm: version 1 with a norm before its attention.
        fc_bias: the projection of its input has a bias.
    """

    version: Version
    layer: ModelSpec
    target_hidden: int
    draft_vocab: int
    feature_layers: tuple[int, ...] = ()
    own_embedding: bool = False
    own_head: bool = False
    mapped: bool = False
    input_norm: bool = True
    fc_bias: bool = False


def eagle_spec(config: Mapping[str, Any], names: Collection[str]) -> EagleSpec:
    """The spec told by a head's config.json and the names of its tensors.

    Raises:
        ModelLoadError: not a head, or one with several layers.
    """
    version: Version | None = None
    if any(name.startswith("midlayer.") for name in names):
        version = 3
    elif "fc.weight" in names and any(name.startswith("layers.0.") for name in names):
        version = 1
    if version is None:
        raise ModelLoadError(
            "This is no draft head of the EAGLE family.",
            hint="Such a head has fc.weight and a midlayer.* (EAGLE-3) or layers.0.* (EAGLE, "
            'EAGLE-2). For a whole small model use speculative="draft".',
        )
    # The class is one of the head's own, its one layer is a Llama's.
    layer = from_hf_config({**config, "architectures": ["LlamaForCausalLM"]})
    if layer.num_layers != 1:
        raise ModelLoadError(
            "Only draft heads of one layer are supported.",
            value=f"num_hidden_layers={layer.num_layers}",
        )
    nested = config.get("eagle_config") or {}
    layers = nested.get("eagle_aux_hidden_state_layer_ids") or config.get(
        "eagle_aux_hidden_state_layer_ids"
    )
    return EagleSpec(
        version=version,
        layer=layer,
        target_hidden=int(config.get("target_hidden_size") or layer.hidden),
        draft_vocab=int(config.get("draft_vocab_size") or layer.vocab_size),
        feature_layers=tuple(int(index) for index in layers or ()),
        own_embedding="embed_tokens.weight" in names,
        own_head="lm_head.weight" in names,
        mapped="d2t" in names,
        input_norm=version == 3 or "layers.0.input_layernorm.weight" in names,
        fc_bias="fc.bias" in names,
    )


def feature_layers(spec: EagleSpec, target_layers: int) -> tuple[int, ...]:
    """Layers of a target after which a head of version 3 reads: those it names, else an early, a
    middle and a late one.

    Raises:
        ModelLoadError: the target does not have them.
    """
    usual = (1, target_layers // 2 - 1, target_layers - 4)
    layers = spec.feature_layers or usual
    if not all(0 <= index < target_layers for index in layers):
        raise ModelLoadError(
            "The draft head reads layers that the model does not have.",
            value=f"{list(layers)} of {target_layers}",
            hint="It was made for another model.",
        )
    return layers
