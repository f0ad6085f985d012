"""Tables of the rotary position embedding (Su et al., 2021), one for all layers.

Invariant: a position's angles depend on the position alone, never on the length of a sequence;
cached keys stay valid whatever is appended to them.
"""

from __future__ import annotations

import math

import torch

from branchline.runtime.config.model_spec import RopeScaling, RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair of dimensions: float32 [head_dim / 2].

    "dynamic" scaling changes nothing here: it stretches only contexts longer than the one a spec
    admits.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    scaling = rope.scaling
    match scaling.kind:
        case "linear":
            return frequencies / scaling.factor
        case "llama3":
            return _llama3(frequencies, scaling)
        case "factors":
            return frequencies / torch.tensor(scaling.factors, dtype=torch.float32)
        case _:
            return frequencies


def rotary_table(rope: RopeSpec, head_dim: int, max_context: int) -> torch.Tensor:
    """cos of the head_dim / 2 angles, then their sin, by position: float32 [max_context, head_dim].

    Angles are float32 products of position and frequency.
    """
    positions = torch.arange(max_context, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Wavelengths past the band are stretched, those below it kept, those within blended."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context, factor = scaling.original_context, scaling.factor
    wavelength = 2 * math.pi / frequencies
    blend = (context / wavelength - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    stretched = torch.where(wavelength > context / low, frequencies / factor, blended)
    return torch.where(wavelength < context / high, frequencies, stretched)
