"""The text side of an engine: tokenizer, chat template, names. No weights, no torch.

Invariant: every process that reads the same model with the same settings has the same text parts,
so ids mean the same text in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.loading.catalog import resolve_model
from branchline.runtime.loading.checkpoint import Checkpoint, TokenizerSource
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.responses import ToolFormat, detect_format
from branchline.runtime.responses.reasoning import (
    ReasoningFormat,
    detect_reasoning,
    format_named,
)
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer
from branchline.runtime.tokenizer.tokenizer import Tokenizer


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
    tokenizer: Tokenizer
    template: ChatTemplate
    turns: TurnRenderer
    reasoning: ReasoningFormat | None


def open_model(config: EngineConfig) -> tuple[Path, Checkpoint]:
    """The model's files, fetched if need be. Raises CatalogError, ModelLoadError."""
    path = resolve_model(config.model.model)
    dummy = config.model.load_format == "dummy"
    return path, open_checkpoint(path, "dummy" if dummy else "auto")


def text_parts(config: EngineConfig, path: Path, source: TokenizerSource | None) -> TextParts:
    """Text parts of a model that is open. Raises ModelLoadError: no tokenizer, or a damaged one."""
    tokenizer = Tokenizer(source)
    template = (
        ChatTemplate.of(tokenizer)
        if config.model.chat_template is None
        else ChatTemplate(config.model.chat_template)
    )
    name = config.model.model
    name = path.name if "/" in name or name.endswith(".gguf") else name
    turns = TurnRenderer(template, _tools(config, tokenizer))
    return TextParts(name, path, tokenizer, template, turns, _reasoning(config, tokenizer))


def _tools(config: EngineConfig, tokenizer: Tokenizer) -> ToolFormat:
    special = {tokenizer.token_text(token): token for token in tokenizer.special_ids}
    return detect_format(_template_text(config, tokenizer), special)


def _reasoning(config: EngineConfig, tokenizer: Tokenizer) -> ReasoningFormat | None:
    chosen = config.model.reasoning_format
    if chosen == "none":
        return None
    if chosen != "auto":
        return format_named(chosen)
    return detect_reasoning(_template_text(config, tokenizer))


def _template_text(config: EngineConfig, tokenizer: Tokenizer) -> str:
    given = config.model.chat_template
    return tokenizer.chat_template if given is None else given


def load_text(config: EngineConfig) -> TextParts:
    """Text parts alone, of a process that has no model. Raises CatalogError, ModelLoadError."""
    path = resolve_model(config.model.model)
    # "dummy" reads facts and tokenizer and no weights.
    checkpoint = open_checkpoint(path, "dummy")
    return text_parts(config, path, checkpoint.tokenizer_source)
