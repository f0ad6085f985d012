"""The head: its unrolling against an oracle, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.loading.safetensors import read_json
from branchline.runtime.training.checkpoint import read_head, write_head
from branchline.runtime.training.head import EagleHead, HeadShape
from branchline.runtime.training.target import Target
from branchline.runtime.training.vocabulary import DraftVocabulary
from tests.training.oracle import OracleHead

SHAPE = HeadShape(ffn=40, layers=(0, 1, 2))


def made_head(target: Target, seed: int = 0) -> EagleHead:
    """Random weights, norms and input scale too."""
    head = EagleHead(target.spec, SHAPE, target.spec.max_context)
    head.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in head.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    head.input_scale.uniform_(0.5, 2.0, generator=generator)
    return head


def test_unrolled_steps_are_those_of_drafting_one_after_another(target: Target) -> None:
    """Step k at position n: entries 1 … n of the target's features, then k of its own outputs."""
    head = made_head(target)
    spec = target.spec
    generator = torch.Generator().manual_seed(3)
    count, steps = 6, 4
    states = torch.randn((2, count, 3 * spec.hidden), generator=generator)
    embedded = torch.randn((2, count, spec.hidden), generator=generator)
    with torch.no_grad():
        outputs = head.unroll(states, embedded, steps)
        oracle = OracleHead(head.public_tensors(torch.float32), spec)
        for row in range(2):
            entries: list[tuple[torch.Tensor, torch.Tensor]] = []
            for begin in range(1, count):
                feature = oracle.feature(states[row, begin - 1])
                output, made = oracle.entry(feature, embedded[row, begin], begin, entries)
                entries.append(made)
                own = list(entries)
                torch.testing.assert_close(outputs[0][row, begin - 1], output, rtol=1e-4, atol=1e-4)
                for ahead in range(1, min(steps, count - begin)):
                    at = begin + ahead
                    output, made = oracle.entry(output, embedded[row, at], at, own)
                    own.append(made)
                    torch.testing.assert_close(
                        outputs[ahead][row, begin - 1], output, rtol=1e-4, atol=1e-4
                    )


def test_outputs_do_not_depend_on_what_comes_after(target: Target) -> None:
    head = made_head(target)
    generator = torch.Generator().manual_seed(4)
    states = torch.randn((1, 8, 3 * target.spec.hidden), generator=generator)
    embedded = torch.randn((1, 8, target.spec.hidden), generator=generator)
    with torch.no_grad():
        whole = head.unroll(states, embedded, 3)
        part = head.unroll(states[:, :5], embedded[:, :5], 3)
    for ahead in range(3):  # the last ones reach tokens that the shorter one lacks
        torch.testing.assert_close(part[ahead][:, : 4 - ahead], whole[ahead][:, : 4 - ahead])


def test_a_checkpoint_has_public_names_and_guesses_as_before(
    target: Target, tmp_path: Path
) -> None:
    head = made_head(target)
    vocabulary = DraftVocabulary(torch.tensor([0, 2, 3, 50, 100]), target.spec.vocab_size)
    nbytes = write_head(tmp_path, head, vocabulary)
    assert nbytes == (tmp_path / "model.safetensors").stat().st_size
    hidden, spec = target.spec.hidden, target.spec
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        offsets, members = file.get_tensor("d2t"), file.get_tensor("t2d")
    assert shapes == {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (spec.q_size, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (spec.kv_size, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (spec.kv_size, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, spec.q_size),
        "midlayer.mlp.gate_proj.weight": (40, hidden),
        "midlayer.mlp.up_proj.weight": (40, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, 40),
        "norm.weight": (hidden,),
        "d2t": (5,),
        "t2d": (101,),
    }
    assert (offsets + torch.arange(5)).tolist() == [0, 2, 3, 50, 100]
    assert members.nonzero()[:, 0].tolist() == [0, 2, 3, 50, 100]
    config = read_json(tmp_path / "config.json")
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 5
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    read = read_head(tmp_path, spec, spec.max_context)
    states = torch.randn(1, 6, 3 * hidden)
    embedded = torch.randn(1, 6, hidden)
    with torch.no_grad():
        want = head.unroll(states, embedded, 2)[1]
        have = read.head.unroll(states, embedded, 2)[1]
    assert float((have - want).norm() / want.norm()) < 0.02  # stored as bfloat16
    assert read.vocabulary.ids.tolist() == [0, 2, 3, 50, 100]


def test_a_head_of_another_target_is_refused(target: Target, tmp_path: Path) -> None:
    write_head(tmp_path, made_head(target), DraftVocabulary(torch.arange(9), 101))
    import dataclasses

    other = dataclasses.replace(target.spec, hidden=64)
    with pytest.raises(ModelLoadError, match="no head of this model"):
        read_head(tmp_path, other, 32)


def test_layers_are_those_that_eagle3_names(target: Target) -> None:
    import dataclasses

    deep = dataclasses.replace(target.spec, num_layers=30)
    assert HeadShape.usual(deep).layers == (1, 14, 26)
    assert HeadShape.usual(deep).ffn == deep.ffn
    with pytest.raises(InvalidRequest, match="two layers"):
        HeadShape.usual(dataclasses.replace(target.spec, num_layers=1))
