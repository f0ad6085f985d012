"""Text to token ids and back, over the `tokenizers` package; no torch, no transformers.

Invariants: text that a user wrote never becomes a special token unless `special=True` says so;
decoding is the concatenation of each token's own bytes, read as UTF-8, so any split of the ids
decodes to the same text; encoding adds nothing (no start id, no leading space) unless asked,
leaves nothing in memory, and stops no other thread for longer than a short text takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.tokenizer.cuts import Cuts

if TYPE_CHECKING:
    from branchline.runtime.loading.checkpoint import TokenizerSource

Json = dict[str, Any]

_SHORT_CHARS = 2000
"""Longer texts are encoded without the interpreter's lock, so that other threads go on meanwhile.

The package gives it back for batches alone; 1 MB takes about a second.
"""


class TokenizerLike(Protocol):
    """What this room's parts need of a tokenizer; `Tokenizer` and `ByteTokenizer` have it."""

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    add_bos: bool
    chat_template: str
    fingerprint: str

    def encode(self, text: str, *, special: bool = False, start: bool = False) -> list[int]: ...

    def encode_template(self, text: str, *, start: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def all_token_bytes(self) -> list[bytes]: ...

    def token_text(self, token_id: int) -> str: ...


class Tokenizer:
    """A byte-level or SentencePiece-style vocabulary.

    Args:
        source: the tokenizer's JSON and the facts beside it (`Checkpoint.tokenizer_source`).

    Attributes:
        vocab_size: largest id + 1; the model's own vocabulary may be padded beyond it.
        bos_id, eos_ids, add_bos, chat_template, fingerprint: as in `TokenizerSource`.
        special_ids: ids of control tokens, which `decode` leaves out.

    Raises:
        ModelLoadError: no source, damaged JSON, or a kind of vocabulary whose tokens are not
            pieces of text.
    """

    def __init__(self, source: TokenizerSource | None) -> None:
        if source is None:
            raise ModelLoadError(
                "The model's files bring no tokenizer.",
                hint="Put its tokenizer.json beside the weights, or use a GGUF file that has one.",
            )
        text, self._prefix = _prepare(source)
        try:
            self._plain = _read(text)
        except Exception as error:  # the package raises bare Exception for bad JSON
            raise ModelLoadError(
                f"The tokenizer cannot be read: {error}.", hint="Fetch the model again."
            ) from error
        self._with_special = _second(self._plain, text)
        self._plain.encode_special_tokens = True
        self._added = {i: t.content for i, t in self._plain.get_added_tokens_decoder().items()}
        special = {i for i, t in self._plain.get_added_tokens_decoder().items() if t.special}
        self.bos_id: int | None = source.bos_id
        self.eos_ids: frozenset[int] = frozenset(source.eos_ids)
        self.special_ids: frozenset[int] = frozenset(special)
        self.add_bos: bool = source.add_bos
        self.chat_template: str = source.chat_template
        self.fingerprint: str = source.fingerprint
        self.vocab_size: int = max(
            self._plain.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1
        )
        self._cuts = Cuts(self._plain, text)
        self._to_bytes = _ByteLevelVocabulary() if _is_byte_level(text) else _SpacedVocabulary()
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._table: list[bytes] | None = None
        self._table_lock = threading.Lock()

    def encode(self, text: str, *, special: bool = False, start: bool = False) -> list[int]:
        """Ids of `text`.

        Args:
            text: any text without lone surrogates; characters that the vocabulary has no token
                and no bytes for are dropped, as the reference tokenizers do.
            special: special-token strings in the text become their ids; else they are plain text.
            start: the text begins a sequence, so vocabularies that begin one with a space do.

        Raises:
            InvalidRequest: the text holds a lone surrogate.
        """
        if start and self._prefix and text and not text.startswith(" "):
            text = " " + text
        return self.encode_each([text], special=special)[0]

    def encode_each(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of each text, as `encode` gives them; InvalidRequest when one holds a surrogate."""
        tokenizer = self._with_special if special else self._plain
        try:
            if sum(map(len, texts)) <= _SHORT_CHARS:
                return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
            found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [one.ids for one in found]
        except (UnicodeEncodeError, TypeError) as error:
            text = next((text for text in texts if not _is_text(text)), "")
            raise InvalidRequest(
                "The text holds a lone surrogate, which no encoding can express.",
                hint="Decode bytes with errors='replace' before they get here.",
                value=ascii(text[:60]),
            ) from error

    def parts(self, text: str) -> list[str]:
        """Parts of a text whose ids, joined, are the text's. Texts that begin alike have their
        first parts in common, so that what they share need not be encoded again."""
        return self._cuts.parts(text)

    def encode_template(self, text: str, *, start: bool = False) -> list[int]:
        """Ids of a piece of a chat template: `encode` with special tokens read as such."""
        return self.encode(text, special=True, start=start)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Ids outside are no text."""
        special = self.special_ids if skip_special else frozenset()
        token_bytes = self.token_bytes
        return b"".join([token_bytes(i) for i in ids if i not in special]).decode(
            "utf-8", "replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes the token stands for; b"" for ids outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._lookup(token_id)
        return known

    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of every id, [vocab_size]; made once, not to be changed."""
        with self._table_lock:
            if self._table is None:
                table = [b""] * self.vocab_size
                for name, i in self._plain.get_vocab(with_added_tokens=True).items():
                    table[i] = self._convert(name, i)
                self._table = table
        return self._table

    def token_text(self, token_id: int) -> str:
        """For people: the token's text, special ones included, broken characters as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _lookup(self, token_id: int) -> bytes:
        name = self._plain.id_to_token(token_id)
        return b"" if name is None else self._convert(name, token_id)

    def _convert(self, name: str, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return name.encode()
        return self._to_bytes(name, token_id in self._added)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _ByteLevelVocabulary:
    """Token names in GPT-2's alphabet, one printable character for each byte."""

    def __init__(self) -> None:
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in visible]
        self._table = {chr(byte): byte for byte in visible}
        self._table |= {chr(256 + i): byte for i, byte in enumerate(hidden)}

    def __call__(self, name: str, added: bool) -> bytes:
        if added:
            return name.encode()
        try:
            return bytes([self._table[char] for char in name])
        except KeyError:
            return name.encode()


class _SpacedVocabulary:
    """Token names as text with U+2581 for a space, and byte tokens like <0x0A>."""

    def __call__(self, name: str, added: bool) -> bytes:
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()


def _prepare(source: TokenizerSource) -> tuple[bytes, bool]:
    """(JSON without a built-in leading space and with bos/eos special, had it a leading space)."""
    try:
        parts = msgspec.json.decode(source.json_text, type=dict[str, msgspec.Raw])
        head = {
            name: msgspec.json.decode(parts[name])
            for name in ("normalizer", "pre_tokenizer", "added_tokens")
            if name in parts
        }
    except msgspec.MsgspecError as error:
        raise ModelLoadError(
            f"The tokenizer is damaged: {error}.", hint="Fetch the model again."
        ) from error
    changed = False
    stripped, prefix = _without_prefix({n: head.get(n) for n in ("normalizer", "pre_tokenizer")})
    if prefix:
        head |= stripped
        changed = True
    control = {*source.eos_ids, source.bos_id}
    for token in head.get("added_tokens") or []:
        if token.get("id") in control and not token.get("special"):
            token["special"] = changed = True
    if not changed:
        return source.json_text, prefix
    parts |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in head.items()}
    return msgspec.json.encode(parts), prefix


def _without_prefix(node: Any) -> tuple[Any, bool]:
    """The same steps, none of which puts a space before the text; and whether one did.

    A lane is tokenized piece by piece, and only its first piece begins a sequence.
    """
    if isinstance(node, list):
        pairs = [_without_prefix(child) for child in node]
        return [child for child, _ in pairs if child is not None], any(had for _, had in pairs)
    if not isinstance(node, dict):
        return node, False
    kind = node.get("type")
    if kind == "Prepend":
        return None, True
    if kind == "Metaspace":
        had = bool(node.get("prepend_scheme", "always") != "never")
        had = had and bool(node.get("add_prefix_space", True))
        return {**node, "prepend_scheme": "never", "add_prefix_space": False}, had
    if kind == "ByteLevel":
        return {**node, "add_prefix_space": False}, bool(node.get("add_prefix_space", False))
    out: Json = {}
    had_any = False
    for key, child in node.items():
        out[key], had = _without_prefix(child)
        had_any = had_any or had
    return out, had_any


def _is_byte_level(text: bytes) -> bool:
    """Whether token names are in the byte alphabet; else they are text with marked spaces."""
    parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    kinds: set[str] = set()
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if name in parts:
            kinds.update(_kinds(msgspec.json.decode(parts[name])))
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return False
    raise ModelLoadError(
        "This kind of tokenizer is not supported: its tokens are not pieces of text.",
        hint="Supported: byte-level BPE and SentencePiece-style vocabularies.",
        value=", ".join(sorted(kinds)) or "no pre-tokenizer or decoder",
    )


def _kinds(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for child in node.values():
            yield from _kinds(child)
    elif isinstance(node, list):
        for child in node:
            yield from _kinds(child)


def _read(text: bytes) -> Any:
    """The package's tokenizer: it cuts and fills nothing, and keeps no text that it encoded.

    Its models would keep 10 000 words for each thread that encodes, about 7 kB for one of 200
    letters: hundreds of MB in a server with a pool of threads, if its clients' words are long.
    Without that, 1000 tokens take about 1.0 ms in place of 0.8.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = tokenizer.model
    if isinstance(model, tokenizers.models.BPE | tokenizers.models.Unigram):  # others keep none
        model._resize_cache(0)
    return tokenizer


def _second(first: Any, text: bytes) -> Any:
    """A tokenizer like `first` that shares its model, so that its settings can differ.

    Whether special tokens are recognised is a setting of the whole object, and switching it to
    and fro would let one thread's text be read under another's setting.
    """
    import tokenizers

    second = tokenizers.Tokenizer(first.model)
    if first.normalizer is not None:
        second.normalizer = first.normalizer
    if first.pre_tokenizer is not None:
        second.pre_tokenizer = first.pre_tokenizer
    added = first.get_added_tokens_decoder()
    for token_id in sorted(added):
        token = added[token_id]
        (second.add_special_tokens if token.special else second.add_tokens)([token])
    same = {i: t.content for i, t in second.get_added_tokens_decoder().items()}
    if same == {i: t.content for i, t in added.items()}:
        return second
    return _read(text)
