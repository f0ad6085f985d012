"""Ids are those of the reference tokenizers, and user text never becomes a special token."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.gguf_tokenizer import make_source, tokenizer_from_gguf
from branchline.runtime.loading.hf_tokenizer import tokenizer_from_directory
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import PIECES, SCORES, source_of, spaced_metadata

ALPHABET = (
    "abcXYZ 0123456789\n\t .,'\"!?-_()[]{}<|>im_endäßéñ日本語🙂👩‍👩‍👧\u0301\u200b\xa0\r\x00ſ½٣"
)
WORDS = [
    "def f(x):\n    return x",
    "don't",
    " 1234567",
    "\n\n\n",
    "  ",
    "<|im_end|>",
    "naïve",
    "😀",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(7)
    texts = ["", " ", "\n", "a" * 300, "".join(WORDS), "".join(rng.choices(WORDS, k=900))]
    while len(texts) < count:
        parts = [
            rng.choice(WORDS)
            if rng.random() < 0.3
            else "".join(rng.choices(ALPHABET, k=rng.randint(1, 12)))
            for _ in range(rng.randint(1, 8))
        ]
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def reference(default_model: Path) -> Any:
    from transformers import AutoTokenizer

    if default_model.is_dir():
        return AutoTokenizer.from_pretrained(default_model)
    loaded = AutoTokenizer.from_pretrained(default_model.parent, gguf_file=default_model.name)
    # transformers does not read the file's pre-tokenizer and takes GPT-2's; SmolLM's own splits
    # digits first
    loaded.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return loaded


def test_default_model_agrees_with_transformers(smol: Tokenizer, reference: Any) -> None:
    for text in random_texts(400):
        ids = smol.encode(text, special=True)
        assert ids == reference.encode(text, add_special_tokens=False)
        for skip in (False, True):
            assert smol.decode(ids, skip_special=skip) == reference.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_digits_are_single_tokens(smol: Tokenizer) -> None:
    ids = smol.encode("in 1984")
    assert [smol.token_text(i) for i in ids] == ["in", " ", "1", "9", "8", "4"]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map("".join))
def test_text_comes_back_and_holds_no_special_token(smol: Tokenizer, text: str) -> None:
    ids = smol.encode(text)
    # This vocabulary has no token for a few control bytes; it drops their characters.
    known = {raw[0] for raw in smol.all_token_bytes() if len(raw) == 1}
    kept = "".join(char for char in text if known.issuperset(char.encode()))
    if kept == text:
        assert smol.decode(ids) == text
    assert smol.special_ids.isdisjoint(ids)


def test_special_tokens_only_where_asked(smol: Tokenizer) -> None:
    end = smol.encode_template("<|im_end|>")
    assert end == [2]
    assert smol.eos_ids == {2}
    assert smol.bos_id == 1
    assert smol.encode("<|im_end|>") != end
    assert smol.decode([2]) == ""
    assert smol.decode([2], skip_special=False) == "<|im_end|>"
    text = "a<|im_start|>b"
    assert smol.encode(text, special=True) == [*smol.encode("a"), 1, *smol.encode("b")]


def test_token_bytes_spell_every_token(smol: Tokenizer) -> None:
    table = smol.all_token_bytes()
    assert len(table) == smol.vocab_size == 49152
    assert table == [smol.token_bytes(i) for i in range(smol.vocab_size)]
    never_in_utf8 = {bytes([b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100))}
    missing = {bytes([b]) for b in range(256)} - set(table)
    assert missing - never_in_utf8 == {bytes([b]) for b in b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"}
    assert smol.token_bytes(49152) == smol.token_bytes(-1) == b""


def test_lone_surrogates_are_refused(smol: Tokenizer, byte_tokenizer: ByteTokenizer) -> None:
    for tokenizer in (smol, byte_tokenizer):
        for text in ("a\ud800", "a" * 3000 + "\ud800"):
            with pytest.raises(InvalidRequest, match="surrogate"):
                tokenizer.encode(text)


def test_other_threads_go_on_while_a_long_text_is_encoded(smol: Tokenizer) -> None:
    turns = 0
    seen: list[int] = []

    def encode() -> None:
        seen.append(turns)
        smol.encode("a structured generation 12 " * 20_000)
        seen.append(turns)

    thread = threading.Thread(target=encode)
    thread.start()
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    thread.join()
    before, after = seen
    assert after - before > 10


def test_no_heavy_package_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from branchline.runtime.loading.catalog import resolve_model;"
        "from branchline.runtime.loading.load import open_checkpoint;"
        "from branchline.runtime.tokenizer.tokenizer import Tokenizer;"
        "Tokenizer(open_checkpoint(resolve_model()).tokenizer_source).encode('x');"
        "print({'torch', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.strip() == "set()"


def brute_force_spaced(text: str) -> list[str]:
    """SentencePiece's own rule: join the neighbours whose union scores highest, leftmost first."""
    score = dict(zip(PIECES, SCORES, strict=True))
    parts = list(text.replace(" ", "\u2581"))
    while True:
        best = max(
            (
                (score[left + right], -i)
                for i, (left, right) in enumerate(itertools.pairwise(parts))
                if left + right in score
            ),
            default=None,
        )
        if best is None:
            return parts
        at = -best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(text=st.text(alphabet="helowrd ", max_size=30))
def test_implied_merges_equal_the_sentencepiece_rule(spaced: Tokenizer, text: str) -> None:
    names = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *PIECES]
    ids = spaced.encode(text)
    assert [names[i] for i in ids] == brute_force_spaced(text)
    assert spaced.decode(ids) == text


def test_spaced_vocabulary_falls_back_to_bytes_and_adds_no_space(spaced: Tokenizer) -> None:
    assert spaced.add_bos
    assert spaced.decode(spaced.encode("日 x<s>")) == "日 x<s>"
    assert 1 not in spaced.encode("<s>")
    assert spaced.encode_template("<s>") == [1]
    world = spaced.encode("hello")
    assert spaced.token_bytes(world[0]) == b"hello"
    assert spaced.decode(spaced.encode("hello", start=True)) == " hello"
    assert spaced.encode(" hello", start=True) == spaced.encode(" hello")
    assert spaced.token_bytes(3 + 0x41) == b"A"
    no_prefix = Tokenizer(source_of(spaced_metadata(prefix=False)))
    assert no_prefix.encode("hello", start=True) == no_prefix.encode("hello")


def write_hf(directory: Path, source: TokenizerSource, settings: dict[str, Any]) -> Path:
    (directory / "tokenizer.json").write_bytes(source.json_text)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_a_directory_gives_the_same_tokenizer(
    tmp_path: Path, default_source: TokenizerSource, smol: Tokenizer
) -> None:
    settings = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": [{"name": "other", "template": "x"}, {"name": "default", "template": "y"}],
    }
    source = tokenizer_from_directory(write_hf(tmp_path, default_source, settings), {})
    assert source is not None
    assert (source.bos_id, source.eos_ids, source.add_bos) == (1, (2,), False)
    assert source.chat_template == "y"
    from_directory = Tokenizer(source)
    for text in random_texts(40):
        assert from_directory.encode(text) == smol.encode(text)
    (tmp_path / "chat_template.jinja").write_text("z <|im_end|>")
    again = tokenizer_from_directory(tmp_path, {})
    assert again is not None
    assert again.chat_template == "z <|im_end|>"
    assert again.fingerprint != source.fingerprint
    assert tokenizer_from_directory(tmp_path / "nowhere", {}) is None


def test_start_ids_of_a_post_processor_are_noticed(
    tmp_path: Path, default_source: TokenizerSource
) -> None:
    document = json.loads(default_source.json_text)
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {},
            }
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    source = tokenizer_from_directory(tmp_path, {"bos_token_id": 1})
    assert source is not None
    assert source.add_bos


def test_end_tokens_count_as_special_even_if_the_file_forgot(
    default_source: TokenizerSource,
) -> None:
    document = json.loads(default_source.json_text)
    for token in document["added_tokens"]:
        token["special"] = False
    source = make_source(
        json.dumps(document).encode(), chat_template="", bos_id=1, eos_ids=[2], add_bos=False
    )
    tokenizer = Tokenizer(source)
    assert tokenizer.special_ids == {1, 2}
    assert {1, 2}.isdisjoint(tokenizer.encode("<|im_start|><|im_end|>"))
    assert tokenizer.encode_template("<|im_start|><|im_end|>") == [1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'.*Supported: gpt2, llama"),
        ({"tokenizer.ggml.scores": []}, "0 scores"),
        ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "odd"}, "'odd'.*smollm"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["ab"]},
            "not two tokens",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        tokenizer_from_gguf(spaced_metadata() | change)


def test_vocabularies_that_are_not_text_are_refused(default_source: TokenizerSource) -> None:
    document = json.loads(default_source.json_text)
    document["pre_tokenizer"] = {"type": "Whitespace"}
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    for text, says in [(json.dumps(document), "not pieces of text"), ("{", "damaged")]:
        source = make_source(
            text.encode(), chat_template="", bos_id=None, eos_ids=[], add_bos=False
        )
        with pytest.raises(ModelLoadError, match=says):
            Tokenizer(source)
    with pytest.raises(ModelLoadError, match="bring no tokenizer"):
        Tokenizer(None)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "default", "smollm"])
def test_every_pre_tokenizer_gives_the_text_back(pre: str, default_source: TokenizerSource) -> None:
    document = json.loads(default_source.json_text)
    vocab = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in document["model"]["merges"]],
    }
    tokenizer = Tokenizer(source_of(metadata))
    for text in ["it's 12345 o'clock\n\n  x", "a  b\r\n\tc", "日本 100%"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    longest = max(len(tokenizer.token_text(i)) for i in tokenizer.encode("1234567"))
    assert longest == {"qwen2": 1, "smollm": 1}.get(pre, longest)


def test_byte_tokenizer_is_bytes(byte_tokenizer: ByteTokenizer) -> None:
    assert byte_tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert byte_tokenizer.encode("a<|end|>") == list(b"a<|end|>")
    assert byte_tokenizer.encode_template("<|turn|>a<|end|>") == [258, 97, 259]
    assert byte_tokenizer.decode([258, 97, 259]) == "a"
    assert byte_tokenizer.decode([258, 97], skip_special=False) == "<|turn|>a"
    assert len(byte_tokenizer.all_token_bytes()) == byte_tokenizer.vocab_size == 260
    assert byte_tokenizer.token_bytes(300) == b""
