"""Turns the tokenizer tables of a GGUF file into JSON for the `tokenizers` package.

Invariant: token ids are the file's own. Two families: "gpt2", byte-level BPE with ranked merges
and a pre-tokenizer named by `tokenizer.ggml.pre`; "llama", SentencePiece BPE, whose merges are
implied by the tokens' scores and whose unknown characters fall back to byte tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import TURN_END_TOKENS, TokenizerSource

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

Json = dict[str, Any]


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TokenizerSource | None:
    """The tokenizer of a GGUF file's metadata; None if the file carries no vocabulary.

    Raises:
        ModelLoadError: a kind of tokenizer or pre-tokenizer that is not supported, or tables
            that do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if kind in (None, "no_vocab", "none") or not tokens:
        return None
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ModelLoadError(
            f"The tokenizer has {len(tokens)} tokens but {len(types)} token types.",
            hint="The file is damaged; fetch it again.",
        )
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if kind == "gpt2":
        document = _byte_level(tokens, metadata.get("tokenizer.ggml.merges") or [], pre)
    elif kind == "llama":
        scores = metadata.get("tokenizer.ggml.scores") or []
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        document = _sentencepiece(tokens, scores, types, prefix)
    else:
        raise ModelLoadError(
            f"Tokenizers of kind {kind!r} are not supported in GGUF files.",
            hint="Supported: gpt2, llama. A Hugging Face directory with tokenizer.json works too.",
        )
    document["added_tokens"] = _added_tokens(tokens, types, sentencepiece=kind == "llama")
    template = str(metadata.get("tokenizer.chat_template", ""))
    add_bos = metadata.get("tokenizer.ggml.add_bos_token")
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return make_source(
        msgspec.json.encode(document),
        chat_template=template,
        bos_id=bos,
        eos_ids=_eos_ids(metadata, tokens, types, template),
        add_bos=bos is not None and bool(kind == "llama" if add_bos is None else add_bos),
    )


def make_source(
    json_text: bytes,
    *,
    chat_template: str,
    bos_id: int | None,
    eos_ids: Sequence[int],
    add_bos: bool,
) -> TokenizerSource:
    """A `TokenizerSource` with its fingerprint computed."""
    digest = hashlib.sha256(json_text)
    facts = [chat_template, bos_id, sorted(eos_ids), add_bos]
    digest.update(msgspec.json.encode(facts))
    return TokenizerSource(
        json_text=json_text,
        chat_template=chat_template,
        bos_id=bos_id,
        eos_ids=tuple(sorted(set(eos_ids))),
        add_bos=add_bos,
        fingerprint=digest.hexdigest(),
    )


def _byte_level(tokens: Sequence[str], merges: Sequence[str], pre: str) -> Json:
    return {
        **_EMPTY,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "decoder": _BYTE_LEVEL_DECODER,
        "model": _bpe(
            {token: i for i, token in enumerate(tokens)},
            [_split_merge(merge) for merge in merges],
            ignore_merges=pre == "llama-bpe",
        ),
    }


def _pre_tokenizer(pre: str) -> Json:
    gpt2 = _step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    if pre in ("gpt-2", "default"):
        return gpt2
    if pre == "smollm":
        digits = _step("Digits", individual_digits=True)
        return _step("Sequence", pretokenizers=[digits, gpt2])
    patterns = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}
    if pre not in patterns:
        raise ModelLoadError(
            f"The pre-tokenizer {pre!r} of this GGUF file is not supported.",
            hint=f"Supported: default, gpt-2, smollm, {', '.join(patterns)}. "
            "A Hugging Face directory with tokenizer.json works too.",
        )
    split = _step("Split", pattern={"Regex": patterns[pre]}, behavior="Isolated", invert=False)
    return _step("Sequence", pretokenizers=[split, gpt2 | {"use_regex": False}])


def _sentencepiece(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool
) -> Json:
    if len(scores) != len(tokens):
        raise ModelLoadError(
            f"The tokenizer has {len(tokens)} tokens but {len(scores)} scores.",
            hint="The file is damaged; fetch it again.",
        )
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    replace = _step("Replace", pattern={"String": "▁"}, content=" ")
    strip = _step("Strip", content=" ", start=1, stop=0)
    return {
        **_EMPTY,
        "normalizer": None,
        "pre_tokenizer": _step(
            "Metaspace",
            replacement="▁",
            prepend_scheme="first" if prefix else "never",
            split=False,
        ),
        "decoder": _step(
            "Sequence",
            decoders=[replace, _step("ByteFallback"), _step("Fuse"), *([strip] if prefix else [])],
        ),
        "model": _bpe(
            {token: i for i, token in enumerate(tokens)},
            _implied_merges(tokens, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind == _BYTE for kind in types),
        ),
    }


def _implied_merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Merges that rebuild SentencePiece's BPE: always join the pair whose union scores highest.

    Control, user-defined and byte tokens are never made by joining. Kudo and Richardson 2018.
    """
    whole = {token for token, kind in zip(tokens, types, strict=True) if kind == 1}
    ranked: list[tuple[float, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token not in whole:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in whole and right in whole:
                ranked.append((-score, -cut, left, right))
    ranked.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in ranked]


def _added_tokens(
    tokens: Sequence[str], types: Sequence[int], *, sentencepiece: bool
) -> list[Json]:
    special = {_CONTROL, _UNKNOWN} if sentencepiece else {_CONTROL}
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in special,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token and (kind in special or kind == _USER_DEFINED)
    ]


def _eos_ids(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], template: str
) -> list[int]:
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ids = [int(i) for i in named if i is not None]
    for end in TURN_END_TOKENS:
        if end in template and end in tokens:
            index = tokens.index(end)
            if types[index] == _CONTROL:
                ids.append(index)
    return ids


def _split_merge(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space or not left or not right:
        raise ModelLoadError(
            "A merge of the tokenizer is not two tokens with a space between.",
            value=merge,
            hint="The file is damaged; fetch it again.",
        )
    return left, right


def _step(kind: str, **settings: Any) -> Json:
    return {"type": kind, **settings}


def _bpe(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


_EMPTY: Json = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
_BYTE_LEVEL_DECODER = _step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)
