"""Small vocabularies made by hand."""

from __future__ import annotations

from typing import Any

from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.gguf_tokenizer import tokenizer_from_gguf

PIECES = ["\u2581", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "hello", "\u2581w", "or"]
PIECES += ["\u2581wor", "ld", "\u2581world", "\u2581hello", "\u2581h", "\u2581hell"]
SCORES = [-1.0 * (i + 1) for i in range(len(PIECES))]


def spaced_metadata(prefix: bool = True, byte_tokens: bool = True) -> dict[str, Any]:
    """GGUF metadata of a small SentencePiece-style vocabulary."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [2, 3, 3]
    if byte_tokens:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [6] * 256
    scores = [0.0] * len(tokens) + SCORES
    tokens, types = tokens + PIECES, types + [1] * len(PIECES)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def source_of(metadata: dict[str, Any]) -> TokenizerSource:
    source = tokenizer_from_gguf(metadata)
    assert source is not None
    return source
