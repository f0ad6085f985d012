"""An engine in this process: scheduler side and text side joined by calls, on one loop thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.engine_core import EngineCore
from branchline.runtime.grammar.service import GrammarService
from branchline.runtime.launch.scheduler_parts import SchedulerParts, build_scheduler
from branchline.runtime.launch.text_parts import AnyTokenizer, open_model, text_parts
from branchline.runtime.tokenizer.output_processor import OutputProcessor

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Assembly:
    """A running engine's parts."""

    config: EngineConfig
    core: EngineCore
    tokenizer: AnyTokenizer
    outputs: OutputProcessor
    scheduler_parts: SchedulerParts

    @property
    def grammars(self) -> GrammarService:
        """The engine's grammars."""
        return self.scheduler_parts.grammars

    def close(self) -> None:
        """Stop in the order that leaves no reader waiting."""
        self.core.loop.close()
        self.outputs.close()
        self.scheduler_parts.close()


def assemble(settings: dict[str, Any]) -> Assembly:
    """Load a model and start its loop thread.

    Raises:
        InvalidRequest, CatalogError, ModelLoadError, OutOfMemory: see `Engine`.
    """
    config = EngineConfig.from_settings(settings)
    path, checkpoint = open_model(config)
    text = text_parts(config, path, checkpoint.tokenizer_source)
    outputs = OutputProcessor(text.tokenizer, text.model_name)

    def call_soon(fn: Callable[[], None]) -> None:
        core.call_soon(fn)

    parts = build_scheduler(config, text, checkpoint, outputs, call_soon)
    core = EngineCore(
        parts.scheduler,
        outputs,
        text.tokenizer,
        text.turns,
        model_name=text.model_name,
        max_context=parts.bounds.max_context,
        reasoning=text.reasoning,
        adapters=parts.adapters,
        describe=parts.facts.describe,
    )
    core.loop.start()
    for decision in parts.decisions:
        logger.info("%s", decision)
    return Assembly(config, core, text.tokenizer, outputs, parts)
