"""What an assistant's answer is made of: how it is asked for, and how it is read.

Law: the parts of an answer, joined, do not depend on how its text was cut, so a stream and a whole
answer say the same. Every chat-like API is written in these parts. Knows no format of any API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.section import Section
from branchline.runtime.responses.constraint import tool_constraint
from branchline.runtime.responses.declaration import render_declaration, render_result
from branchline.runtime.responses.events import ArgumentsPiece, CallBegin, TextPiece
from branchline.runtime.responses.formats import ToolFormat, detect_format
from branchline.runtime.responses.parser import tool_parser
from branchline.runtime.responses.reasoning import (
    AnswerPiece,
    Piece,
    Position,
    ReasoningFormat,
    ReasoningParser,
)
from branchline.runtime.responses.specs import ToolChoice, ToolSpec
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.limits import check
from branchline.runtime.server.prompts import ChatPrompt, Conversation, Message, Prompts
from branchline.runtime.tokenizer.incremental import IncrementalDecoder
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


class Thought(NamedTuple):
    """More of the reasoning."""

    text: str


class Said(NamedTuple):
    """More of the text."""

    text: str


Part = Thought | Said | CallBegin | ArgumentsPiece


class Tools(NamedTuple):
    """The tools of a request, none of them forbidden.

    Attributes:
        choice: `auto`, `required` or a tool's name.
    """

    specs: Sequence[ToolSpec]
    choice: ToolChoice = "auto"
    parallel: bool = True


class AnswerReader:
    """Reads one output.

    Args:
        reasoning: None = the text is not searched for reasoning.
        tools: None = the text is not searched for calls.
        apart: see `tool_parser`.
    """

    def __init__(
        self,
        reasoning: tuple[ReasoningFormat, Position] | None,
        tools: tuple[ToolFormat, Sequence[ToolSpec]] | None,
        *,
        apart: bool = False,
    ) -> None:
        self._reasoning = None if reasoning is None else ReasoningParser(*reasoning)
        self._tools = None if tools is None else tool_parser(*tools, apart=apart)

    def feed(self, text: str) -> list[Part]:
        """Read on; the parts that are certain."""
        if not text:
            return []
        if self._reasoning is None:
            return self._read(text)
        return list(self._divided(self._reasoning.feed(text)))

    @property
    def reasoning(self) -> list[tuple[int, int]]:
        """Where in the text so far the reasoning stands, without its markup."""
        if self._reasoning is not None:
            return self._reasoning.sections
        return [] if self._tools is None else self._tools.reasoning

    def finish(self) -> list[Part]:
        """Nothing follows; the rest."""
        parts = [] if self._reasoning is None else list(self._divided(self._reasoning.finish()))
        if self._tools is not None:
            parts += _parts(self._tools.finish())
        return parts

    def _divided(self, pieces: Sequence[Piece]) -> Iterator[Part]:
        for piece in pieces:
            if isinstance(piece, AnswerPiece):
                yield from self._read(piece.text)
            else:
                yield Thought(piece.text)

    def _read(self, text: str) -> list[Part]:
        return [Said(text)] if self._tools is None else _parts(self._tools.feed(text))


def _parts(events: Sequence[Any]) -> list[Part]:
    """A call that breaks off keeps what has been shown of it; a whole call has been shown."""
    parts: list[Part] = []
    for event in events:
        if isinstance(event, TextPiece):
            kind = Thought if event.voice == "reasoning" else Said
            parts.append(kind(event.text))
        elif isinstance(event, CallBegin | ArgumentsPiece):
            parts.append(event)
    return parts


@dataclass
class Call:
    """A tool call, complete or cut off."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """Parts, joined."""

    thought: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, parts: Sequence[Part]) -> Answer:
        """Join more; returns self."""
        for part in parts:
            if isinstance(part, Thought):
                self.thought += part.text
            elif isinstance(part, Said):
                self.text += part.text
            elif isinstance(part, CallBegin):
                self.calls.append(Call(part.id, part.name))
            else:
                self.calls[part.index].arguments += part.text
        return self


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that is ready to run.

    Attributes:
        constraint: what the answer must match, behind its reasoning.
        section: the reasoning that the answer begins with.
        reasoning, tools: how the answer is read.
        apart: the answer is calls alone or text alone.
        counted: it is known which of the answer's tokens are reasoning.
    """

    prompt: ChatPrompt
    constraint: Constraint | None
    section: Section | None
    reasoning: tuple[ReasoningFormat, Position] | None
    tools: tuple[ToolFormat, Sequence[ToolSpec]] | None
    shows_special: bool
    counted: bool = True
    apart: bool = False

    def reader(self) -> AnswerReader:
        """For one of the answers."""
        return AnswerReader(self.reasoning, self.tools, apart=self.apart)

    def reasoning_tokens(
        self,
        tokenizer: TokenizerLike,
        sampling: SamplingParams,
        reader: AnswerReader,
        ids: Sequence[int],
    ) -> int | None:
        """How many of an answer's ids are reasoning: those whose text begins within it.

        Args:
            sampling: what the answer was asked with.
            reader: has read the whole of it.

        Returns:
            None where reasoning was left in the text and not looked for.
        """
        if not self.counted:
            return None
        sections = reader.reasoning
        if not sections:
            return 0
        decoder = IncrementalDecoder(tokenizer, skip_special=sampling.skip_special_tokens)
        count = at = 0
        for token in ids:
            count += any(begin <= at < end for begin, end in sections)
            at += len(decoder.push([token]))
            if at >= sections[-1][1]:
                break
        return count

    def refine(self, sampling: SamplingParams) -> SamplingParams:
        """`sampling` with what this question asks of the output."""
        return msgspec.structs.replace(
            sampling,
            constraint=self.constraint,
            section=self.section,
            skip_special_tokens=sampling.skip_special_tokens and not self.shows_special,
        )


class Questions:
    """Prepares the conversations of one server's model."""

    def __init__(self, context: ServerContext, prompts: Prompts) -> None:
        tokenizer = context.tokenizer
        self._prompts = prompts
        self._limits = context.limits
        self._encode = tokenizer.encode_template
        self._special = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
        self._format = detect_format(context.chat.text, self._special)
        self._thinking = context.port.reasoning

    async def prepare(
        self,
        conversation: Conversation,
        tools: Tools | None,
        constraint: Constraint | None,
        *,
        separate_reasoning: bool = True,
        bounded: bool = True,
    ) -> Question:
        """The prompt, and how its answer is constrained and read.

        Args:
            bounded: it is to be run, and has to be one that can be.

        Raises:
            Refused: a constraint other than JSON beside tools, or too many tools.
            UnsupportedConstraint: one that the tools' format cannot have beside calls.
            InvalidRequest, ProgramError: see `Prompts.chat`.
        """
        reading = None
        apart = False
        if tools is not None:
            check("max_tools", "the number of tools", len(tools.specs), self._limits.max_tools)
            if constraint is not None and constraint.kind != "json_schema":
                raise Refused(
                    400,
                    f"tools and a {constraint.kind} constraint cannot be asked for together",
                    param="tools",
                    hint="Use a JSON schema, set tool_choice to none, or leave the constraint out.",
                )
            specs, choice, parallel = tools
            apart = constraint is not None and choice == "auto"
            constraint = tool_constraint(self._format, specs, choice, parallel, constraint)
            reading = (self._format, specs)
            conversation = self._with_tools(conversation, specs)
        if not self._format.native:
            turns = [plain_turn(message, self._format) for message in conversation.messages]
            conversation = replace(conversation, messages=turns)
        prompt = await self._prompts.chat(conversation)
        if bounded:
            self._prompts.check_length(prompt.ids)
        # A format with voices tells reasoning itself, in its grammar and in its parser.
        voiced = reading is not None and bool(self._format.frames)
        thinking = None if voiced else self._thinking
        position = None if thinking is None else thinking.position(prompt.turn)
        section = None
        if thinking is not None and position == "open":
            section = thinking.section(self._encode)
        reasoning = None
        if thinking is not None and position is not None and separate_reasoning:
            reasoning = (thinking, position)
        return Question(
            prompt,
            constraint,
            section,
            reasoning,
            reading,
            self._shows_special(reasoning is not None, reading is not None),
            counted=thinking is None or separate_reasoning,
            apart=apart,
        )

    def _shows_special(self, reasoning: bool, tools: bool) -> bool:
        """Whether markup that is to be read is spelled in special tokens."""
        if tools and self._format.special:
            return True
        if not reasoning or self._thinking is None:
            return False
        markup = (self._thinking.begin, self._thinking.end)
        return any(name and name in text for text in markup for name in self._special)

    def _with_tools(self, conversation: Conversation, specs: Sequence[ToolSpec]) -> Conversation:
        """The conversation with the tools in it, as the model's template can show them."""
        if self._format.native:
            listed = [spec.to_openai() for spec in specs]
            return replace(conversation, tools=listed)
        # Turns of tools and calls in the history are written out by `plain_turn`.
        declared = render_declaration(specs, self._format)
        messages = list(conversation.messages)
        if messages and messages[0].get("role") == "system":
            first = messages[0]
            messages[0] = {**first, "content": f"{first.get('content') or ''}\n\n{declared}"}
        else:
            messages.insert(0, {"role": "system", "content": declared})
        return replace(conversation, messages=messages)


def plain_turn(message: Message, form: ToolFormat) -> Message:
    """A turn for templates that know no tools: calls and results as text of other roles."""
    if message.get("role") == "tool":
        return {"role": "user", "content": render_result(str(message.get("content") or ""))}
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    if not calls:
        return message
    blocks = [str(message.get("content") or "")]
    for call in calls:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        body = f"{form.head}{function['name']}{form.middle}{arguments}{form.tail}"
        blocks.append(f"{form.marker}{form.opening}{body}{form.closing}")
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, blocks))}
