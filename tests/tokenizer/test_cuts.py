"""The ids of a text's parts, joined, are the text's, and texts that begin alike share parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.gguf_tokenizer import make_source, tokenizer_from_gguf
from branchline.runtime.tokenizer import cuts
from branchline.runtime.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import source_of, spaced_metadata

ALPHABET = "abcZ1 \n\n\n\t.,'\"-\ré́你🙂<|x>"


def byte_level(pre: str) -> TokenizerSource:
    """All bytes, and tokens that reach over every kind of boundary where nothing keeps them."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]
    line, space = chr(256 + hidden.index(10)), chr(256 + hidden.index(32))
    pairs = [(a, b) for a in "ab.1" for b in (line, "a", "b", ".", "1")]
    pairs += [(line, line), (line, "a"), (line, space), (space, line), (space, "a"), (space, space)]
    merges = [f"{a} {b}" for a, b in pairs]
    source = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*letters, *(a + b for a, b in pairs), "<|x|>"],
            "tokenizer.ggml.token_type": [1] * (len(letters) + len(pairs)) + [3],
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.eos_token_id": len(letters) + len(pairs),
        }
    )
    assert source is not None
    return source


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(byte_level(request.param))


@settings(max_examples=400, deadline=None)
@given(text=st.text(alphabet=ALPHABET, max_size=80), special=st.booleans())
def test_the_parts_have_the_ids_of_the_text(tokenizer: Tokenizer, text: str, special: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "_SHORTEST", 1)
        parts = tokenizer.parts(text)
    assert "".join(parts) == text
    joined = [i for ids in tokenizer.encode_each(parts, special=special) for i in ids]
    assert joined == tokenizer.encode(text, special=special)


def test_the_default_model_s_texts_are_cut_at_their_lines(smol: Tokenizer) -> None:
    line = "Task: a stone by the river, a bridge and a quiet light in the evening\n"
    one, other = smol.parts(line * 4 + "Answer: yes"), smol.parts(line * 4 + "Answer: no")
    assert len(one) > 3
    assert one[:-1] == other[:-1]
    assert [i for p in one for i in smol.encode(p)] == smol.encode("".join(one))


def test_a_break_that_punctuation_takes_with_it_is_no_cut() -> None:
    text = ("a" * 80 + ".\n") * 3
    assert len(Tokenizer(byte_level("gpt-2")).parts(text)) == 4
    assert Tokenizer(byte_level("llama-bpe")).parts(text) == [text]


def changed(**parts: Any) -> TokenizerSource:
    import json

    document = json.loads(byte_level("gpt-2").json_text) | parts
    return make_source(
        json.dumps(document).encode(), chat_template="", bos_id=None, eos_ids=[0], add_bos=False
    )


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LOWERED = {"type": "Lowercase"}


def split(pattern: str) -> dict[str, Any]:
    step = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [step, GPT2]}


@pytest.mark.parametrize(
    "source",
    [
        source_of(spaced_metadata()),
        changed(normalizer=LOWERED),
        changed(pre_tokenizer=split(r"(?<=a)\n")),
        changed(pre_tokenizer=split(r"^\s+|\w+|\s")),
        changed(pre_tokenizer=split(r"\w+$|\w|\s")),
        changed(
            added_tokens=[
                {
                    "id": 0,
                    "content": "a\nb",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": False,
                }
            ]
        ),
    ],
    ids=["pieces over lines", "rewritten", "looks back", "begins", "ends", "token over lines"],
)
def test_what_is_not_sure_is_not_cut(source: TokenizerSource) -> None:
    text = ("a" * 80 + "\n") * 3
    assert Tokenizer(source).parts(text) == [text]
