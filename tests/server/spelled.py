"""Servers whose answers are given texts, for models whose templates know tools and reasoning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from branchline.runtime.responses.reasoning import detect_reasoning
from branchline.runtime.server.context import make_context
from branchline.runtime.tokenizer.chat import ChatTemplate
from tests.support.http_server import RunningServer, serve
from tests.support.spelled_port import Reply, SpelledPort

TEMPLATE = (
    "{% if tools %}<|turn|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call as <tool_call>JSON</tool_call><|end|>\n{% endif %}"
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if thinking %}<think>\n{% elif false %}</think>{% endif %}{% endif %}"
)
"""Writes tool calls as Hermes does, and opens reasoning where `thinking` is set."""

WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
CALLS = (
    "Let me look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"town": "Paris {é}", "days": 2}}\n</tool_call>'
    '\n<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'
)

ANSWERS = [
    CALLS,
    "plain text",
    "",
    "half a <tool_ca",
    CALLS[:-40],
    CALLS + " tail",
    "I think\nso.\n</think>\n\nYes. " + CALLS,
    "unfinished thoughts",
    "x</think>y",
]
"""Whole ones and such as break off; what stands before `</think>` is reasoning where it is open."""


@dataclass
class Spelled:
    """A server and the port under it."""

    server: RunningServer
    port: SpelledPort

    @property
    def last(self) -> Any:
        """The last request that the engine got."""
        return self.port.requests[-1]

    @property
    def prompt(self) -> str:
        """The text of its prompt."""
        return self.port.tokenizer.decode(self.last.prompt_ids, skip_special=False)

    @contextmanager
    def saying(self, text: str, cuts: Sequence[int]) -> Iterator[None]:
        """While it lasts, answers are `text`, and streams are cut at these places."""
        ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
        pieces = [text[begin:end] for begin, end in itertools.pairwise(ends)]
        reply, cut = self.port.reply, self.port.cut
        self.port.reply, self.port.cut = lambda prompt, index: text, lambda whole: pieces
        try:
            yield
        finally:
            self.port.reply, self.port.cut = reply, cut


@contextmanager
def spelled_server(reply: Reply, template: str = TEMPLATE, **options: Any) -> Iterator[Spelled]:
    """Serve a port that answers with `reply`."""
    port = SpelledPort(reply)
    port.reasoning = detect_reasoning(template)
    chat = ChatTemplate(template)
    context = make_context(port, port.tokenizer, chat=chat, **options)
    with serve(context) as server:
        yield Spelled(server, port)
    port.close()
