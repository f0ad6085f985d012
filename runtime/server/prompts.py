"""Texts and conversations to token ids, off the event loop.

Invariants: text of a conversation's contents never becomes a special token, whatever it spells;
only the template's own markup does. A template runs in a sandbox, for a bounded time, and sees no
more of the request than its messages, tools and the variables it was given.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.limits import check
from branchline.runtime.tokenizer.template_time import run_bounded

Message = dict[str, Any]

_INLINE_CHARS = 2000
"""Texts of a request up to this long are tokenized on the event loop: a thread would cost more."""
_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
    | {"chat_template", "tokenize"}
)
_MARK = "Qzvx{}xvzQ"
_MARKS = re.compile(r"Qzvx(\d+)xvzQ")
_TURN_MARK = "QzvxTURNxvzQ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages: with "role" and a "content" that is text, and what else templates read.
        tools: in OpenAI's form, for templates that know them.
        continue_final: the answer goes on in the last message, which is the assistant's.
        variables: further variables of the template.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, ready to be continued.

    Attributes:
        turn: the text of the assistant's turn so far: the markup that opens it, and the content
            that is continued.
    """

    ids: list[int]
    turn: str


class Prompts:
    """Makes prompts of one server's model."""

    def __init__(self, context: ServerContext) -> None:
        self._tokenizer = context.tokenizer
        self._chat = context.chat
        self._limits = context.limits
        self._max_context = context.port.max_context
        special = sorted(map(context.tokenizer.token_text, context.tokenizer.special_ids))
        names = "|".join(re.escape(name) for name in reversed(special) if name)
        self._special = re.compile(names or r"(?!)")

    async def ids(
        self,
        prompts: Iterable[str | list[int]],
        *,
        names: Iterable[str] = repeat("the prompt"),
        start: bool = True,
        bounded: bool = True,
    ) -> list[list[int]]:
        """Ids of prompts; special-token strings in a text are read as such, ids stay as they are.

        Args:
            prompts: read one after the other, so that they need not be there all at once.
            names: what the client calls each.
            start: they begin a sequence, so what the model's tokenizer puts first comes first.
            bounded: each is to be run, and has to be one that can be; see `check_length`.
        """

        def encode(pair: tuple[str, str | list[int]]) -> list[int]:
            name, prompt = pair
            ids = self._encode(prompt, start) if isinstance(prompt, str) else prompt
            if bounded:
                self.check_length(ids, name)
            return ids

        pairs = zip(names, prompts, strict=False)
        found: list[list[int]] = []
        left = _INLINE_CHARS
        for pair in pairs:
            left -= len(pair[1]) if isinstance(pair[1], str) else 0
            if left < 0:
                rest = map(encode, chain([pair], pairs))
                return found + await asyncio.to_thread(list, rest)
            found.append(encode(pair))
        return found

    async def chat(self, conversation: Conversation) -> ChatPrompt:
        """Ids of a conversation, up to where the assistant's answer goes on.

        Raises:
            InvalidRequest: no messages, too many, or a variable that is not the client's to set.
            ProgramError: the template refuses the conversation, or takes too long.
        """
        if not conversation.messages:
            raise Refused(400, "messages is empty", param="messages", hint="Send at least one.")
        count = len(conversation.messages)
        check("max_messages", "the number of messages", count, self._limits.max_messages)
        for name in conversation.variables:
            if name in _RESERVED:
                raise Refused(
                    400,
                    f"chat_template_kwargs: {name} cannot be set",
                    param="chat_template_kwargs",
                )
        return await asyncio.to_thread(self._render, conversation)

    def check_length(self, ids: Sequence[int], what: str = "the prompt") -> None:
        """Raise `InvalidRequest` for a prompt without tokens, or with too many."""
        if not ids:
            raise InvalidRequest(f"{what} is empty", hint="Give at least one token.")
        limit = self._limits.max_prompt_tokens
        check("max_prompt_tokens", f"the number of tokens of {what}", len(ids), limit)
        if len(ids) >= self._max_context:
            raise Refused(
                400,
                f"{what} has {len(ids)} tokens, but this model's context holds {self._max_context}",
                code="context_length_exceeded",
                hint="Shorten it.",
            )

    def _encode(self, text: str, start: bool) -> list[int]:
        tokenizer = self._tokenizer
        ids = tokenizer.encode(text, special=True, start=start)
        first = tokenizer.bos_id
        if start and tokenizer.add_bos and first is not None and ids[:1] != [first]:
            return [first, *ids]
        return ids

    # -- conversations, on a thread of their own -------------------------------------------------

    def _render(self, conversation: Conversation) -> ChatPrompt:
        hidden: list[str] = []
        messages = [self._hide(message, hidden) for message in conversation.messages]
        tools = conversation.tools and [self._hide(tool, hidden) for tool in conversation.tools]
        if conversation.continue_final:
            text, turn = self._continued(conversation, messages, tools)
        else:
            text = self._apply(conversation, messages, tools, conversation.add_generation_prompt)
            turn = ""
            if conversation.add_generation_prompt:
                closed = self._apply(conversation, messages, tools, False)
                turn = _behind(closed, text)
        return ChatPrompt(self._ids(text, hidden), turn)

    def _apply(
        self, conversation: Conversation, messages: list[Message], tools: Any, prompt: bool
    ) -> str:
        return run_bounded(
            lambda: self._chat.render(
                messages,
                add_generation_prompt=prompt,
                tools=tools,
                **conversation.variables,
            ),
            self._limits.template_timeout_s,
        )

    def _continued(
        self, conversation: Conversation, messages: list[Message], tools: Any
    ) -> tuple[str, str]:
        """(text up to the end of the last message's content, that content)."""
        last = messages[-1]
        if last.get("role") != "assistant":
            raise Refused(
                400,
                "continue_final_message needs an assistant message at the end",
                param="messages",
                value=last.get("role"),
            )
        content = str(last.get("content") or "")
        marked = [*messages[:-1], {**last, "content": _TURN_MARK}]
        text = self._apply(conversation, marked, tools, False)
        before, found, _ = text.partition(_TURN_MARK)
        if not found:
            raise InvalidRequest(
                "the model's chat template does not show the last message as it is",
                hint="Leave continue_final_message out.",
            )
        return before + content, content

    def _hide(self, value: Any, hidden: list[str]) -> Any:
        """`value` with marks in place of what spells a special token."""
        if isinstance(value, str):

            def mark(found: re.Match[str]) -> str:
                hidden.append(found[0])
                return _MARK.format(len(hidden) - 1)

            return self._special.sub(mark, value)
        if isinstance(value, Mapping):
            return {key: self._hide(child, hidden) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(child, hidden) for child in value]
        return value

    def _ids(self, text: str, hidden: list[str]) -> list[int]:
        if not hidden:
            return self._tokenizer.encode_template(text, start=True)
        ids: list[int] = []
        pieces = _MARKS.split(text)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                ids += self._tokenizer.encode_template(piece, start=index == 0)
            elif int(piece) < len(hidden):
                ids += self._tokenizer.encode(hidden[int(piece)])
            else:  # a client's own text that looks like a mark
                ids += self._tokenizer.encode(_MARK.format(piece))
        return ids


def prompts_of(
    given: str | Sequence[str | int | list[int]], name: str = "prompt"
) -> list[str | list[int]]:
    """The prompts of a request: each a text or ids; `name` is the field's.

    Raises:
        Refused: an empty list, or one that mixes ids with other prompts.
    """
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    several = [item for item in given if not isinstance(item, int)]
    if bool(ids) == bool(several):
        what = "mixes ids and prompts" if ids else "is an empty list"
        raise Refused(400, f"{name} {what}", param=name)
    return several or [ids]


def _behind(shorter: str, text: str) -> str:
    """What `text` has after the beginning that it shares with `shorter`."""
    if text.startswith(shorter):
        return text[len(shorter) :]
    pairs = enumerate(zip(text, shorter, strict=False))
    return text[next((i for i, (a, b) in pairs if a != b), 0) :]
