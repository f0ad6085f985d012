"""Templates render as transformers renders them; turn by turn gives the same text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import ModelLoadError, ProgramError
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer
from branchline.runtime.tokenizer.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\n\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
DEEPSEEK = """{% set ns = namespace(system='') %}
{%- for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}
{%- endif %}{% endfor %}
{{- bos_token }}{{ ns.system }}
{%- for m in messages %}
{%- if m['role'] == 'system' %}{% continue %}{% endif %}
{%- if m['role'] == 'user' %}{{ '<User>' + m['content'] }}
{%- elif m['role'] == 'assistant' %}
{%- generation %}{{ '<Assistant>' + m['content'].split('</think>')[-1] + eos_token }}
{%- endgeneration %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<Assistant>' }}{% endif %}"""
THINKING = """{% for m in messages %}<{{ m.role }}>
{%- if m.role == 'assistant' and loop.last %}<think></think>{% endif %}
{{- m.content }}</{{ m.role }}>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
TOOLS = """{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for m in messages %}[{{ m.role }}]{{ m.content | tojson }}{% endfor %}
{%- if strftime_now is defined %} {{ strftime_now('%Y') }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "llama 3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "deepseek": DEEPSEEK,
    "thinking": THINKING,
    "tools": TOOLS,
}
APPEND_ONLY = ["chatml", "default system", "llama 3", "gemma", "deepseek", "mistral"]

SYSTEM = {"role": "system", "content": "Be terse."}
USER = {"role": "user", "content": 'Who <b>"are"</b> you & why?\n'}
ASSISTANT = {"role": "assistant", "content": "I am é 🙂."}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def reference() -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("first", [[SYSTEM, USER], [USER]])
def test_rendering_agrees_with_transformers(
    reference: Any, name: str, prompt: bool, first: list[dict[str, str]]
) -> None:
    for messages in (first, [*first, ASSISTANT], [*first, ASSISTANT, USER]):
        arguments = {
            "chat_template": TEMPLATES[name],
            "tokenize": False,
            "add_generation_prompt": prompt,
        }
        if name == "tools":
            arguments["tools"] = [{"type": "function", "function": {"name": "é<"}}]
        try:
            expected = reference.apply_chat_template(messages, **arguments)
        except Exception as error:
            with pytest.raises(ProgramError, match=str(error)):
                template(name).render(messages, add_generation_prompt=prompt)
            continue
        got = template(name).render(
            messages, add_generation_prompt=prompt, tools=arguments.get("tools")
        )
        assert got == expected


def rebuilt(renderer: TurnRenderer, turns: list[tuple[str, str]]) -> str:
    text = ""
    for index, (role, content) in enumerate(turns):
        history = turns[:index]
        text += renderer.begin(history, role) + content + renderer.end(history, role)
    return text


CONTENTS = st.text(alphabet="ab <>{}\n'é", max_size=6).map(lambda text: f"x{text}y")


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    name=st.sampled_from(APPEND_ONLY),
    system=st.booleans(),
    contents=st.lists(CONTENTS, min_size=2, max_size=7),
)
def test_the_pieces_together_are_the_templates_own_text(
    name: str, system: bool, contents: list[str]
) -> None:
    turns: list[tuple[str, str]] = []
    if system and name != "gemma":
        turns.append(("system", contents.pop()))
    for index, content in enumerate(contents):
        role = "assistant" if index % 2 else "user"
        # this template's own space before an answer belongs to what a model generates
        space = " " if name == "mistral" and role == "assistant" else ""
        turns.append((role, space + content))
    messages = [{"role": role, "content": content} for role, content in turns]
    if name == "mistral":
        messages = [
            {**m, "content": m["content"].removeprefix(" ")} if m["role"] == "assistant" else m
            for m in messages
        ]
    renderer = TurnRenderer(template(name))
    assert rebuilt(renderer, turns) == template(name).render(messages)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=6)
)
def test_any_order_of_roles_under_chatml(roles: list[str]) -> None:
    turns = [(role, f"content {i}") for i, role in enumerate(roles)]
    messages = [{"role": role, "content": content} for role, content in turns]
    for name in ("chatml", "default system"):
        assert rebuilt(TurnRenderer(template(name)), turns) == template(name).render(messages)


def test_an_assistant_turn_begins_with_the_generation_prompt() -> None:
    turns = [("user", "hi")]
    for name in ("chatml", "llama 3", "gemma", "deepseek", "thinking"):
        renderer = TurnRenderer(template(name))
        text = rebuilt(renderer, turns) + renderer.begin(turns, "assistant")
        messages = [{"role": "user", "content": "hi"}]
        assert text == template(name).render(messages, add_generation_prompt=True)
    mistral = TurnRenderer(template("mistral"))
    assert mistral.begin(turns, "assistant") == ""
    assert mistral.end(turns, "assistant") == "</s>"


def test_the_default_models_own_system_turn_comes_first(smol: Tokenizer) -> None:
    renderer = TurnRenderer(ChatTemplate.of(smol))
    begin = renderer.begin([], "user")
    assert begin.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert begin.endswith("<|im_end|>\n<|im_start|>user\n")
    assert renderer.begin([], "system") == "<|im_start|>system\n"
    assert renderer.begin([("system", "x")], "user") == "<|im_start|>user\n"
    assert renderer.begin([], "assistant").endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert smol.encode_template(renderer.end([], "user"))[0] in smol.eos_ids


def test_refusals_name_the_role_and_say_what_the_template_said() -> None:
    with pytest.raises(ProgramError, match="'system' as the first turn: System role not supp"):
        TurnRenderer(template("gemma")).begin([], "system")
    with pytest.raises(ProgramError, match="'user' after user: Roles must alternate"):
        TurnRenderer(template("mistral")).begin([("user", "a")], "user")
    with pytest.raises(ProgramError, match="does not show a turn of 'critic' as the first turn"):
        TurnRenderer(template("deepseek")).begin([], "critic")
    with pytest.raises(ProgramError, match=r"refuses these turns: System role.*\[got system\]"):
        template("gemma").render([SYSTEM])


def test_a_role_is_a_short_name() -> None:
    turns = TurnRenderer(ChatTemplate(CHATML))
    assert turns.begin([], "r" * 64) == f"<|im_start|>{'r' * 64}\n"
    with pytest.raises(ProgramError, match="at most 64 characters"):
        turns.begin([], "r" * 65)


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    rewriting = ChatTemplate(
        "{% for m in messages %}{{ m.content }}{{ '!' if loop.last else '?' }}{% endfor %}"
    )
    renderer = TurnRenderer(rewriting)
    assert renderer.begin([], "user") == ""
    with pytest.raises(ProgramError, match="changes what stood before"):
        renderer.begin([("user", "a")], "user")


def test_models_without_a_template_get_the_neutral_format() -> None:
    neutral = ChatTemplate("")
    assert neutral.is_default
    turns = [("system", "S"), ("user", "U"), ("assistant", "A")]
    text = rebuilt(TurnRenderer(neutral), turns)
    assert text == "system:\nS\n\nuser:\nU\n\nassistant:\nA\n\n"


def test_templates_run_in_a_sandbox() -> None:
    for text in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ):
        with pytest.raises(ProgramError, match="refuses these turns"):
            ChatTemplate(text).render([USER])
    with pytest.raises(ModelLoadError, match="not valid"):
        ChatTemplate("{% for %}")


def test_pieces_cost_microseconds_once_found(byte_tokenizer: ByteTokenizer) -> None:
    renderer = TurnRenderer(ChatTemplate.of(byte_tokenizer))
    history = [("system", "x" * 1000), ("user", "y" * 1000)]
    assert renderer.begin(history, "assistant") == "<|turn|>assistant\n"
    started = time.perf_counter()
    for i in range(10_000):
        renderer.begin([("system", "x"), ("user", str(i))], "assistant")
    assert (time.perf_counter() - started) / 10_000 < 50e-6
