"""Which format a chat template is made for, and what a model is told where it has none."""

from __future__ import annotations

import json

import pytest

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.responses import (
    DECLARED,
    FORMATS,
    ToolSpec,
    ToolUse,
    detect_format,
    read_spec,
    render_declaration,
    render_result,
)
from tests.responses.writing import ALL, TOOLS, parse, read

TEMPLATES = {
    "hermes": "{% if tools %}within <tools></tools> XML tags: <tool_call>\\n{...}</tool_call>",
    "llama3": '{% if tools %}{"name": function name, "parameters": dictionary}<|python_tag|>',
    "mistral": '{% if tools %}{{ "[TOOL_CALLS] [" }}{{ tool_calls }}',
    "mistral_args": "{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]{{ args }}",
    "pythonic": "{% if tools %}[func_name1(params_name1=params_value1), func_name2(params)]",
    "deepseek": "{% if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function ```json{{ a }}",
    "deepseek_plain": "{% if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}",
    "harmony": "{% if tools %}<|channel|>commentary to=functions.{{ name }}<|message|>",
    "declared": "{% for message in messages %}{{ message.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", ALL)
def test_a_template_shows_its_format(name: str) -> None:
    assert detect_format(TEMPLATES[name]) == FORMATS[name]


@pytest.mark.parametrize(
    "template",
    ["", "{{ messages }} <tool_call>", "{% if tools %}<tool_call><function=f>", "{{ tools }}"],
)
def test_a_template_that_shows_none_gets_the_declared_one(template: str) -> None:
    assert detect_format(template) == DECLARED
    assert not DECLARED.native


def test_variants_of_a_format_are_told_from_the_template() -> None:
    assert detect_format("{{ tools }}'[TOOL_CALLS][' ~ calls").opening == "["
    marked = detect_format("{{ tools }}<|tool_call_start|>[f(a=1)]<|tool_call_end|>")
    assert (marked.marker, marked.bare) == ("<|tool_call_start|>", False)
    assert read(parse(marked, ["x<|tool_call_start|>[weather(a=1)]<|tool_call_end|>"])).text == "x"
    assert detect_format('{{ tools }}{"name": n, "parameters": p}').marker == ""


def test_special_tokens_that_a_format_uses_are_noted() -> None:
    special = {"[TOOL_CALLS]": 5, "[ARGS]": 32, "</s>": 2, "[INST]": 3, "": 9}
    assert detect_format(TEMPLATES["mistral_args"], special).special == {
        "[TOOL_CALLS]": 5,
        "[ARGS]": 32,
    }


@pytest.mark.parametrize("name", ALL)
def test_a_declaration_shows_tools_and_a_call_that_parses(name: str) -> None:
    form = FORMATS[name]
    text = render_declaration(TOOLS, form)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"name": "weat')]
    assert [line["name"] for line in lines] == ["weather", "weather_at"]
    assert lines[0]["description"] == "Weather of a city."
    shown = text.partition("its arguments:\n")[2].partition("\nThe result")[0]
    value = "1" if form.arguments == "python" else '{"a": 1}'
    call = shown.replace("NAME", "weather").replace('{"ARGUMENT": VALUE}', value)
    call = call.replace("ARGUMENT=VALUE", "a=1")
    assert read(parse(form, [call])).calls == [("weather", {"a": 1})]


def test_a_result_is_marked_as_one() -> None:
    assert render_result("3 °C") == "<tool_response>\n3 °C\n</tool_response>"


@pytest.mark.parametrize(
    "value",
    [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}},
        {"type": "function", "name": "f", "description": "d", "parameters": None, "strict": True},
        {"name": "f", "description": "d", "input_schema": {}},
        ToolSpec(name="f", description="d"),
    ],
)
def test_specs_are_read_as_apis_write_them(value: object) -> None:
    spec = read_spec(value)
    assert spec == ToolSpec(name="f", description="d")
    assert read_spec(spec.to_openai()).name == "f"
    assert spec.schema["additionalProperties"] is False  # it takes none


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (3, "not a tool"),
        ({"function": {}}, "without a name"),
        ({"name": "two words"}, "not the name of a tool"),
        ({"name": "auto"}, "name of a tool choice"),
        ({"type": "web_search"}, "unknown type"),
        ({"name": "f", "parameters": []}, "no schema"),
        ({"name": "f", "parameters": {"type": "array"}}, "no object"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(value: object, what: str) -> None:
    with pytest.raises(InvalidRequest, match=what):
        read_spec(value)


def test_a_choice_leaves_tools() -> None:
    assert ToolUse(tools=TOOLS, choice="weather").callable == TOOLS[:1]
    assert ToolUse(tools=TOOLS, choice="none").callable == ()
    assert ToolUse(tools=TOOLS).callable == TOOLS
    with pytest.raises(InvalidRequest, match="too many tools"):
        ToolUse(tools=tuple(ToolSpec(name=f"f{i}") for i in range(129)))
