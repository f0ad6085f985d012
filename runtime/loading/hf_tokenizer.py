"""Gathers the tokenizer of a Hugging Face directory: tokenizer.json, its settings, its template.

Invariant: only the few fields needed are decoded, so a tokenizer.json of many megabytes costs a
scan; the file itself is handed on byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import TURN_END_TOKENS, TokenizerSource
from branchline.runtime.loading.gguf_tokenizer import make_source


class _Added(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    added_tokens: list[_Added] = []
    post_processor: dict[str, Any] | None = None


def tokenizer_from_directory(directory: Path, config: Mapping[str, Any]) -> TokenizerSource | None:
    """The tokenizer of `directory`; None if it has no tokenizer.json.

    Args:
        directory: a Hugging Face directory.
        config: its config.json; its `bos_token_id` is used where the tokenizer names none.

    Raises:
        ModelLoadError: a file is damaged.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        return None
    text = path.read_bytes()
    file = _decode(path, text, _TokenizerFile)
    settings_path = directory / "tokenizer_config.json"
    settings: dict[str, Any] = {}
    if settings_path.exists():
        settings = _decode(settings_path, settings_path.read_bytes(), dict[str, Any])
    ids = {added.content: added.id for added in file.added_tokens}
    template = _chat_template(directory, settings)
    eos = ids.get(_token_text(settings.get("eos_token")))
    ends = [ids[end] for end in TURN_END_TOKENS if end in template and end in ids]
    bos = ids.get(_token_text(settings.get("bos_token")))
    if bos is None and isinstance(config.get("bos_token_id"), int):
        bos = config["bos_token_id"]
    starts = _starts_with(file.post_processor)
    by_id = {added.id: added.content for added in file.added_tokens}
    add_bos = settings.get("add_bos_token")
    if add_bos is None:
        add_bos = bos is not None and by_id.get(bos) in starts
    return make_source(
        text,
        chat_template=template,
        bos_id=bos,
        eos_ids=ends + ([] if eos is None else [eos]),
        add_bos=bool(add_bos) and bos is not None,
    )


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str:
    separate = directory / "chat_template.jinja"
    if separate.exists():
        return separate.read_text(encoding="utf-8")
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        named = {str(t.get("name")): str(t.get("template", "")) for t in template}
        return named.get("default", "")
    return str(template)


def _starts_with(post: Mapping[str, Any] | None) -> set[str]:
    """Special tokens that the post-processor puts before a single sequence."""
    if not post:
        return set()
    if post.get("type") == "Sequence":
        return {text for part in post.get("processors", []) for text in _starts_with(part)}
    single = post.get("single") or []
    if post.get("type") != "TemplateProcessing" or not single:
        return set()
    first = single[0].get("SpecialToken")
    return {str(first["id"])} if first else set()


def _token_text(value: Any) -> str:
    """A token in the settings is its text, or an object with `content`."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _decode(path: Path, text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise ModelLoadError(f"{path} is damaged: {error}.", hint="Fetch it again.") from error
