"""Tools in chat templates: the first turn carries them, and every result finds a turn."""

from __future__ import annotations

import json

import pytest

from branchline.runtime.errors import ProgramError
from branchline.runtime.responses import DECLARED, FORMATS, ToolSpec, detect_format
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer

HERMES = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools>\nCall: <tool_call>{"name": N, "arguments": A}</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
STRICT = """{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}
        {{- raise_exception('Only user and assistant roles') }}
    {%- endif %}
    {{- '[' + message.role + ']' + message.content + '[/]' }}
{%- endfor %}"""
TOOL = ToolSpec(name="add", description="Adds.", parameters={"properties": {"a": {}}})


def conversation(renderer: TurnRenderer, turns: list[tuple[str, str]]) -> str:
    text = ""
    for count, (role, content) in enumerate(turns):
        text += renderer.begin(turns[:count], role) + content + renderer.end(turns[:count], role)
    return text


@pytest.mark.parametrize("first", ["system", "user"])
def test_the_first_turn_carries_tools_as_the_template_has_them(first: str) -> None:
    template = ChatTemplate(HERMES)
    turns = TurnRenderer(template, detect_format(HERMES)).with_tools([TOOL])
    talk = [(first, "Be brief."), ("user", "1 + 1?"), ("assistant", "2")]
    talk = talk if first == "system" else [("user", "1 + 1?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in talk]
    whole = template.render(messages, tools=[TOOL.to_openai()])
    assert conversation(turns, talk) == whole
    assert json.dumps(TOOL.to_openai()) in whole
    assert turns.tool_format == FORMATS["hermes"]


def test_a_template_that_tells_of_tools_before_the_latest_question_does_so_each_time() -> None:
    moving = """{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}
{%- for m in messages %}{% if m.role == 'user' %}
{%- if tools and m == last %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + '</s>' }}{% endif %}
{%- endfor %}"""
    turns = TurnRenderer(ChatTemplate(moving)).with_tools([TOOL])
    talk = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    told = f"[TOOLS]{json.dumps([TOOL.to_openai()])}[/TOOLS]"
    assert conversation(turns, talk) == f"{told}[INST]q[/INST]a</s>{told}[INST]r[/INST]b</s>"


def test_a_result_stands_in_the_template_s_own_turn() -> None:
    template = ChatTemplate(HERMES)
    talk = [("user", "q"), ("assistant", "<tool_call>"), ("tool", "3"), ("assistant", "3.")]
    messages = [{"role": role, "content": content} for role, content in talk]
    assert conversation(TurnRenderer(template), talk) == template.render(messages)


def test_results_that_a_template_merges_keep_a_turn_each() -> None:
    renderer = TurnRenderer(ChatTemplate(HERMES))
    talk = [("user", "q"), ("assistant", "c"), ("tool", "3"), ("tool", "4"), ("assistant", "7")]
    assert conversation(renderer, talk) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n"
    )


def test_a_template_without_tools_shows_results_as_the_user_s() -> None:
    renderer = TurnRenderer(ChatTemplate(STRICT))
    assert renderer.tool_format == DECLARED
    talk = [("user", "q"), ("assistant", "c"), ("tool", "3"), ("assistant", "a"), ("user", "b")]
    assert conversation(renderer, talk) == (
        "[user]q[/][assistant]c[/][user]<tool_response>\n3\n</tool_response>[/]"
        "[assistant]a[/][user]b[/]"
    )
    with pytest.raises(ProgramError, match="'system' after user"):
        renderer.begin([("user", "q")], "system")
