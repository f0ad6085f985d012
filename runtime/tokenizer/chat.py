"""Chat templates: whole conversations as a model's own template writes them, and turn by turn.

Laws: `ChatTemplate.render` writes what the template's author meant, in a sandbox. The pieces of
`TurnRenderer` put together, begin + content + end for each turn, are that same text wherever the
template only ever appends; where it does not, the error says so. Pieces depend on the roles
alone, never on the contents, so they are found once for each sequence of roles.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from branchline.runtime.errors import ModelLoadError, ProgramError
from branchline.runtime.responses import DECLARED, ToolFormat, ToolSpec, render_result

if TYPE_CHECKING:
    from jinja2 import Environment

    from branchline.runtime.tokenizer.tokenizer import TokenizerLike

Turn = tuple[str, str]
"""(role, content)."""

NEUTRAL_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""For models that bring no template: the role, a colon and a line break; the content; a blank
line. It has no special tokens, since such a model knows none for turns."""

ASSISTANT = "assistant"
TOOL = "tool"
_CUT = "\0"
_MAX_SHAPES = 4096
_MAX_ROLE_CHARS = 64
_RENDER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A Jinja chat template.

    Args:
        text: the template; "" means `NEUTRAL_TEMPLATE`.
        bos_token, eos_token: texts of the model's start and end tokens, for templates that
            write them.

    Raises:
        ModelLoadError: the template is not valid Jinja.
    """

    def __init__(self, text: str, *, bos_token: str = "", eos_token: str = "") -> None:
        from jinja2 import TemplateSyntaxError

        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.text = text
        self.is_default = not text
        try:
            self._template = _environment().from_string(text or NEUTRAL_TEMPLATE)
        except TemplateSyntaxError as error:
            raise ModelLoadError(
                f"The model's chat template is not valid: {error.message} (line {error.lineno}).",
                hint="Fetch the model again, or give it another template.",
            ) from error

    @classmethod
    def of(cls, tokenizer: TokenizerLike) -> ChatTemplate:
        """The template that belongs to a tokenizer."""
        bos, eos = tokenizer.bos_id, min(tokenizer.eos_ids, default=None)
        return cls(
            tokenizer.chat_template,
            bos_token="" if bos is None else tokenizer.token_text(bos),
            eos_token="" if eos is None else tokenizer.token_text(eos),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text.

        Args:
            messages: objects with "role" and "content", and whatever else the template reads.
            add_generation_prompt: end with what comes before the next assistant content.
            tools: JSON schemas of tools, for templates that know them.
            variables: further variables of the template.

        Raises:
            ProgramError: the template refuses the conversation; its own message is included.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                documents=None,
                **self._tokens,
                **variables,
            )
        except (TemplateError, *_RENDER_ERRORS) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ProgramError(
                f"The model's chat template refuses these turns: {error}.",
                hint="Use roles in an order the template allows.",
                value=roles or "no turns",
            ) from error


class _Shape(NamedTuple):
    """Pieces of the turn that follows a sequence of roles."""

    begin: str
    end: str


class TurnRenderer:
    """Gives a conversation's markup one turn at a time, so that what was emitted can stay.

    A template is rendered with marks in place of contents; the text between two marks is what
    belongs between two contents. The markup that opens an assistant turn is the template's
    generation prompt. A default system turn that a template inserts is in the first `begin`, and
    so is what it says of tools. Results of tools that a template refuses to show become turns of
    the user, marked as results; where it would merge neighbouring results into one turn, each
    keeps its own.

    Args:
        template: of the model.
        tool_format: how the model writes tool calls.
        tools: declared by the template.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tool_format: ToolFormat = DECLARED,
        tools: Sequence[ToolSpec] = (),
    ) -> None:
        self.tool_format = tool_format
        self._template = template
        self._tools = [tool.to_openai() for tool in tools] or None
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        # The pieces of a turn are asked for several times, and by the next turn once more.
        self._gaps = lru_cache(maxsize=4)(self._find_gaps)

    def with_tools(self, tools: Sequence[ToolSpec]) -> TurnRenderer:
        """See `ChatTurns.with_tools`."""
        return TurnRenderer(self._template, self.tool_format, tools)

    def begin(self, history: Sequence[Turn], role: str) -> str:
        """Text between all that was emitted so far and the content of the next turn.

        Args:
            history: the finished turns.
            role: of the next turn.

        Raises:
            ProgramError: the template has no such turn there; names the role, and says what the
                template itself said.
        """
        return self._shape(history, role).begin

    def end(self, history: Sequence[Turn], role: str) -> str:
        """Text after the content of the open turn of `role`, up to where the next one begins."""
        return self._shape(history, role).end

    def _shape(self, history: Sequence[Turn], role: str) -> _Shape:
        key = (*[turn[0] for turn in history], role)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._find(key)
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            self._shapes[key] = shape
        return shape

    def _find(self, roles: tuple[str, ...]) -> _Shape:
        if len(roles[-1]) > _MAX_ROLE_CHARS:  # it would be kept
            raise ProgramError(
                "a role's name is too long",
                value=f"{roles[-1][:_MAX_ROLE_CHARS]}…",
                hint=f"Use at most {_MAX_ROLE_CHARS} characters.",
            )
        if TOOL not in roles:
            return self._pieces(roles)
        try:
            return self._pieces(roles)
        except ProgramError:
            if roles[-2:] == (TOOL, TOOL):
                return self._shape([(role, "") for role in roles[:-2]], TOOL)
            shape = self._pieces(tuple("user" if role == TOOL else role for role in roles))
            if roles[-1] != TOOL:
                return shape
            begin, end = render_result(_CUT).split(_CUT)
            return _Shape(shape.begin + begin, end + shape.end)

    def _pieces(self, roles: tuple[str, ...]) -> _Shape:
        before, role = roles[:-1], roles[-1]
        opening = self._before_last(roles)
        emitted = self._after_last(before)
        if role == ASSISTANT and before:
            opening = self._prompt(before, opening, emitted)
        if not opening.startswith(emitted):
            raise ProgramError(
                f"The model's chat template changes what stood before a turn of {role!r}, so "
                "a conversation cannot be built turn by turn.",
                hint="Use a template that only appends.",
                value=" > ".join(roles),
            )
        return _Shape(opening[len(emitted) :], self._after_last(roles))

    def _prompt(self, before: tuple[str, ...], in_history: str, emitted: str) -> str:
        """What stands between the last content and an assistant's that is to be generated.

        Templates without a generation prompt write the same markup they use for finished turns;
        a space at its end is left for the model to generate with its first word.
        """
        try:
            gaps = self._gaps(before, True)
        except ProgramError:
            return in_history
        if gaps is None:
            return in_history
        if gaps[-1] == emitted:
            return in_history.rstrip(" ")
        return gaps[-1]

    def _after_last(self, roles: tuple[str, ...]) -> str:
        """Text after the last content, when nothing follows it yet.

        "" for turns that a template only writes together with the next one, such as a system
        turn that becomes part of the first user turn: all the text is then in the next `begin`.
        """
        if not roles:
            return ""
        try:
            gaps = self._gaps(roles, False)
        except ProgramError:
            return ""
        return "" if gaps is None else gaps[-1]

    def _before_last(self, roles: tuple[str, ...]) -> str:
        """Text between the last content of `roles` and the one before it, or the beginning.

        A template may show a turn only when another follows, so followers are tried too.
        """
        refusal: ProgramError | None = None
        for followers in ((), ("user",), (ASSISTANT,), ("user", ASSISTANT)):
            try:
                gaps = self._gaps((*roles, *followers), False)
            except ProgramError as error:
                refusal = refusal or error
                continue
            if gaps is not None:
                return gaps[len(roles) - 1]
        _refuse(roles, refusal)

    def _find_gaps(self, roles: tuple[str, ...], prompt: bool) -> list[str] | None:
        """Text before, between and after the contents of `roles`, len(roles) + 1 pieces; None where
        the template does not show each of them once, in order. ProgramError: it refuses them.
        """
        messages = [{"role": role, "content": _mark(i)} for i, role in enumerate(roles)]
        text = self._template.render(messages, add_generation_prompt=prompt, tools=self._tools)
        return _split(text, len(roles))


def _refuse(roles: tuple[str, ...], refusal: ProgramError | None) -> NoReturn:
    role, after = roles[-1], roles[:-1]
    place = f"after {' > '.join(after)}" if after else "as the first turn"
    if refusal is None:
        raise ProgramError(
            f"The model's chat template does not show a turn of {role!r} {place}.",
            hint="Use another role for it.",
            value=role,
        )
    said = str(refusal.__cause__) or type(refusal.__cause__).__name__
    raise ProgramError(
        f"The model's chat template refuses a turn of {role!r} {place}: {said}",
        hint="Use roles in an order the template allows.",
        value=role,
    ) from refusal.__cause__


def _mark(index: int) -> str:
    """A content that no template contains and none changes: no spaces, no markup, no JSON."""
    return f"Qzvx{index:05d}xvzQ"


_MARK = re.compile(r"Qzvx(\d{5,})xvzQ")


def _split(text: str, count: int) -> list[str] | None:
    """`text` cut at the marks 0 to count - 1; None unless each is there once, in order."""
    pieces = _MARK.split(text)
    return pieces[::2] if list(map(int, pieces[1::2])) == list(range(count)) else None


def _environment() -> Environment:
    """The sandbox that chat templates are written for: as in the hub's model cards."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant wrote, for training; here it is no-op."""

        tags = {"generation"}  # noqa: RUF012  # the base class declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
