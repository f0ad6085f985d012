"""adapter_config.json as PEFT writes it: ranks, scales, and which modules are adapted.

Invariant: what is not plain low-rank adaptation of the base model's own weights is refused with the
setting's name; nothing that would change outputs is passed over. Module names are the base model's
(`model.layers.0.self_attn.q_proj`). Knows no tensors and no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from branchline.runtime.errors import AdapterDamaged, AdapterUnsupported
from branchline.runtime.patterns.search import Search, search_for

MAX_RANK = 256
ALL_LINEAR = "all-linear"

_REFUSED = {
    "use_dora": "weight-decomposed adaptation (DoRA)",
    "lora_bias": "biases of adapters",
    "modules_to_save": "modules that were trained whole",
    "trainable_token_indices": "tokens that were trained on their own",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated adaptation (aLoRA)",
    "use_qalora": "quantization-aware adaptation (QALoRA)",
    "use_bdlora": "block-diagonal adaptation",
    "target_parameters": "adapted parameters that are no modules",
    "ensure_weight_tying": "an adapter tied between embedding and head",
    "monteclora_config": "Monte Carlo adaptation",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow routing",
}
"""Settings that change what an adapter means, if they are on."""

_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin that move a part of the base model's weights into the adapter."""


_PLAIN = re.compile(r"\^?[\w.]+")


class _Raw(msgspec.Struct):
    """The fields that are read as they are."""

    peft_type: str = "LORA"
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    bias: str = "none"
    base_model_name_or_path: str | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: list[int] | int | None = None
    init_lora_weights: bool | str | None = True


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What an adapter says of itself.

    Attributes:
        base: name of the model that it was made for; "" if it does not say.
        rank, alpha: of modules that no pattern names.
        rslora: scales are alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski, 2023).
        targets: names (or ends of names) of the adapted modules, a pattern of whole names,
            "all-linear", or None where it does not say.
        excluded: likewise, modules that are not adapted all the same.
        layers: numbers of the layers that are adapted; None = all.
        ranks, alphas: for modules whose name, or its end, a pattern matches; the first one counts.
    """

    base: str
    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...] | str | None
    excluded: tuple[str, ...] | str | None
    layers: frozenset[int] | None
    ranks: tuple[tuple[str, int], ...]
    alphas: tuple[tuple[str, float], ...]

    @property
    def largest_rank(self) -> int:
        """Of all modules that it may adapt."""
        return max((self.rank, *(rank for _, rank in self.ranks)))

    def rank_of(self, module: str) -> int:
        """The rank that a module's matrices have."""
        return next((rank for key, rank in self.ranks if _ends(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of a module's product."""
        rank = self.rank_of(module)
        alpha = next((alpha for key, alpha in self.alphas if _ends(key, module)), self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def adapts(self, module: str, *, head: bool) -> bool:
        """Whether the module is among those that the adapter says it changes.

        Args:
            head: it is the output head, which "all-linear" leaves out.
        """
        if self.targets is None or (self.excluded and _named(self.excluded, module)):
            return False
        if self.targets == ALL_LINEAR:
            return not head and not module.endswith("embed_tokens")
        if not _named(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str):
            return True
        number = re.search(r"\.layers\.(\d+)\.", f".{module}")
        return number is not None and int(number[1]) in self.layers


def read_config(data: bytes, where: str) -> PeftConfig:
    """The settings in the bytes of an adapter_config.json.

    Args:
        where: what to call the file in messages.

    Raises:
        AdapterDamaged: it is not JSON, or a setting has an impossible value.
        AdapterUnsupported: it describes something else than plain low-rank adaptation.
    """
    try:
        everything = msgspec.json.decode(data, type=dict[str, Any])
        raw = msgspec.convert(everything, _Raw, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterDamaged(
            f"{where} cannot be read: {error}", hint="Save the adapter again with PEFT."
        ) from error
    _refuse(everything, raw, where)
    ranks, alphas = raw.rank_pattern or {}, raw.alpha_pattern or {}
    for name, rank in (("r", raw.r), *ranks.items()):
        if not 1 <= rank <= MAX_RANK:
            raise AdapterUnsupported(
                f"{where}: the rank {name!r} is out of range", value=rank, hint=f"1 to {MAX_RANK}."
            )
    for name, alpha in (("lora_alpha", raw.lora_alpha), *alphas.items()):
        if not math.isfinite(alpha):
            raise AdapterDamaged(f"{where}: {name!r} is no number", value=alpha)
    layers = raw.layers_to_transform
    layers = [layers] if isinstance(layers, int) else layers
    config = PeftConfig(
        base=raw.base_model_name_or_path or "",
        rank=raw.r,
        alpha=raw.lora_alpha,
        rslora=raw.use_rslora,
        targets=_names(raw.target_modules),
        excluded=_names(raw.exclude_modules),
        layers=None if layers is None else frozenset(layers),
        ranks=tuple(ranks.items()),
        alphas=tuple(alphas.items()),
    )
    _check_patterns(config, where)
    return config


def _refuse(everything: Mapping[str, Any], raw: _Raw, where: str) -> None:
    if raw.peft_type.upper() != "LORA":
        raise AdapterUnsupported(
            f"{where} describes no low-rank adapter", value=raw.peft_type, hint="Use LoRA."
        )
    for name, what in _REFUSED.items():
        if everything.get(name):
            raise AdapterUnsupported(
                f"{where}: {what} cannot be run",
                value=f"{name}={everything[name]!r}",
                hint="Train a plain LoRA adapter, or merge this one into the base model.",
            )
    if raw.bias != "none":
        raise AdapterUnsupported(
            f"{where}: trained biases cannot be run",
            value=f"bias={raw.bias!r}",
            hint='Train with bias="none", or merge the adapter into the base model.',
        )
    begins = str(raw.init_lora_weights).lower()
    if begins.startswith(_CHANGES_BASE):
        raise AdapterUnsupported(
            f"{where}: the adapter belongs to base weights that its training changed",
            value=f"init_lora_weights={raw.init_lora_weights!r}",
            hint="Save it with PEFT's path_initial_model_for_weight_conversion, which makes a "
            "plain adapter of it.",
        )


def _names(value: list[str] | str | None) -> tuple[str, ...] | str | None:
    return tuple(value) if isinstance(value, list) else value


def _named(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return _matches(f"^(?:{names})$", module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _ends(key: str, module: str) -> bool:
    """Whether a pattern matches the module's name, or its end behind a dot."""
    if not _PLAIN.fullmatch(key):
        return _matches(f"^(?:.*\\.)?(?:{key})$", module)
    # A name, as most are: hundreds of them against hundreds of modules. A dot means any character.
    whole, name = key.startswith("^"), key.removeprefix("^")
    at = len(module) - len(name)
    if at < 0 or (at and (whole or module[at - 1] != ".")):
        return False
    return all(want in (".", have) for want, have in zip(name, module[at:], strict=True))


def _matches(pattern: str, module: str) -> bool:
    """In time linear in the name, since patterns come with files from anywhere."""
    search = search_for(pattern)
    return search is not None and bool(search.found_in(module))


def _check_patterns(config: PeftConfig, where: str) -> None:
    patterns = [key for key, _ in (*config.ranks, *config.alphas)]
    for names in (config.targets, config.excluded):
        if isinstance(names, str) and names != ALL_LINEAR:
            patterns.append(names)
    for pattern in patterns:
        search: Search | None = search_for(f"^(?:{pattern})$")
        if search is None or search.found_in("model.layers.0.self_attn.q_proj") is None:
            raise AdapterUnsupported(
                f"{where}: a pattern of module names cannot be searched for",
                value=pattern,
                hint="Use plain regular expressions: no backreferences, no lookbehind.",
            )
