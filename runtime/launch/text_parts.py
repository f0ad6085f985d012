"""The text side of an engine: tokenizer, chat template, names. No weights, no torch.

Invariant: every process that reads the same model with the same settings has the same text parts,
so ids mean the same text in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.loading.catalog import DEFAULT_MODEL, model_path, resolve_model
from branchline.runtime.loading.checkpoint import Checkpoint, DummyCheckpoint, TokenizerSource
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.responses import ToolFormat, detect_format
from branchline.runtime.responses.reasoning import (
    ReasoningFormat,
    detect_reasoning,
    format_named,
)
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer
from branchline.runtime.tokenizer.tokenizer import Tokenizer

AnyTokenizer = Tokenizer | ByteTokenizer


@dataclass(frozen=True, slots=True)
class TextParts:
    """What turns text into ids and back.

    Attributes:
        model_name: for people and for results.
        path: where the model lies.
        template: of whole conversations; `turns` is the same, turn by turn.
        reasoning: how the model marks what it thinks; None where it does not think.
    """

    model_name: str
    path: Path
    tokenizer: AnyTokenizer
    template: ChatTemplate
    turns: TurnRenderer
    reasoning: ReasoningFormat | None


def open_model(config: EngineConfig) -> tuple[Path, Checkpoint]:
    """The model's files, fetched if need be. Raises CatalogError, ModelLoadError."""
    path = resolve_model(config.model.model)
    return path, _open(path, dummy=config.model.load_format == "dummy")


def _open(path: Path, *, dummy: bool) -> Checkpoint:
    """A checkpoint; random weights of a shape that brings no tokenizer get the default model's, if
    that is here and its ids are ids of the shape."""
    checkpoint = open_checkpoint(path, "dummy" if dummy else "auto")
    if isinstance(checkpoint, DummyCheckpoint) and checkpoint.tokenizer_source is None:
        default = model_path(DEFAULT_MODEL)
        other = None if default is None else open_checkpoint(default, "dummy")
        if other is not None and other.spec.vocab_size <= checkpoint.spec.vocab_size:
            checkpoint.tokenizer_source = other.tokenizer_source
    return checkpoint


def text_parts(config: EngineConfig, path: Path, source: TokenizerSource | None) -> TextParts:
    """Text parts of a model that is open. Raises ModelLoadError: no tokenizer, or a damaged one."""
    tokenizer = _tokenizer(config, source)
    template = (
        ChatTemplate.of(tokenizer)
        if config.model.chat_template is None
        else ChatTemplate(config.model.chat_template)
    )
    name = config.model.model
    name = path.name if "/" in name or name.endswith(".gguf") else name
    turns = TurnRenderer(template, _tools(config, tokenizer))
    return TextParts(name, path, tokenizer, template, turns, _reasoning(config, tokenizer))


def _tokenizer(config: EngineConfig, source: TokenizerSource | None) -> AnyTokenizer:
    if source is None and config.model.load_format == "dummy":
        return ByteTokenizer()  # random weights mean nothing by their ids
    return Tokenizer(source)


def _tools(config: EngineConfig, tokenizer: AnyTokenizer) -> ToolFormat:
    special = {tokenizer.token_text(token): token for token in tokenizer.special_ids}
    return detect_format(_template_text(config, tokenizer), special)


def _reasoning(config: EngineConfig, tokenizer: AnyTokenizer) -> ReasoningFormat | None:
    chosen = config.model.reasoning_format
    if chosen == "none":
        return None
    if chosen != "auto":
        return format_named(chosen)
    return detect_reasoning(_template_text(config, tokenizer))


def _template_text(config: EngineConfig, tokenizer: AnyTokenizer) -> str:
    given = config.model.chat_template
    return tokenizer.chat_template if given is None else given


def load_text(config: EngineConfig) -> TextParts:
    """Text parts alone, of a process that has no model. Raises CatalogError, ModelLoadError."""
    path = resolve_model(config.model.model)
    # "dummy" reads facts and tokenizer and no weights.
    checkpoint = _open(path, dummy=True)
    return text_parts(config, path, checkpoint.tokenizer_source)
