"""A tokenizer whose ids 0 to 255 are the bytes themselves: for tests and scripted engines.

Invariant: `decode(encode(text)) == text` for every text, with no tables and no packages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from branchline.runtime.errors import InvalidRequest

BYTE_CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)

_SPECIAL = ("<|bos|>", "<|eos|>", "<|turn|>", "<|end|>")
_SPECIAL_PATTERN = re.compile("|".join(re.escape(name) for name in _SPECIAL))
_BYTES = 256


class ByteTokenizer:
    """260 ids: the bytes, then <|bos|>, <|eos|>, <|turn|> and <|end|>."""

    def __init__(self) -> None:
        self.vocab_size: int = _BYTES + len(_SPECIAL)
        self.bos_id: int | None = _BYTES
        self.eos_ids: frozenset[int] = frozenset({_BYTES + 1, _BYTES + 3})
        self.special_ids: frozenset[int] = frozenset(range(_BYTES, self.vocab_size))
        self.add_bos: bool = False
        self.chat_template: str = BYTE_CHAT_TEMPLATE
        self.fingerprint: str = "bytes-1"

    def encode(self, text: str, *, special: bool = False, start: bool = False) -> list[int]:
        """Ids of `text`; `special`: strings like <|end|> become their ids. `start` is ignored."""
        if not special:
            return list(_utf8(text))
        ids: list[int] = []
        at = 0
        for found in _SPECIAL_PATTERN.finditer(text):
            ids += _utf8(text[at : found.start()])
            ids.append(_BYTES + _SPECIAL.index(found[0]))
            at = found.end()
        return [*ids, *_utf8(text[at:])]

    def encode_template(self, text: str, *, start: bool = False) -> list[int]:
        """`encode` with special tokens read as such."""
        return self.encode(text, special=True, start=start)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        kept = (i for i in ids if not (skip_special and i >= _BYTES))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte, or the special token's text; b"" for ids outside."""
        if 0 <= token_id < _BYTES:
            return bytes([token_id])
        inside = _BYTES <= token_id < self.vocab_size
        return _SPECIAL[token_id - _BYTES].encode() if inside else b""

    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of every id, [vocab_size]."""
        return [self.token_bytes(i) for i in range(self.vocab_size)]

    def token_text(self, token_id: int) -> str:
        """For people."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "The text holds a lone surrogate, which no encoding can express.",
            hint="Decode bytes with errors='replace' before they get here.",
            value=ascii(text[:60]),
        ) from error
