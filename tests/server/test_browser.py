"""The web page in headless Chromium, over the default model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from branchline.runtime.engine import Engine
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import AppendText, Fork, OpenProgram
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys as ApiKeys
from tests.server.browser import Page, open_page
from tests.support.adapter_port import AdaptedEngine
from tests.support.http_server import RunningServer, serve, serve_engine

pytestmark = pytest.mark.browser


@pytest.fixture
def page(model_server: RunningServer) -> Iterator[Page]:
    """The page; afterwards, nothing may have complained or gone elsewhere."""
    with open_page(model_server.url) as opened:
        yield opened
        assert opened.complaints() == []
        assert opened.hosts() == {model_server.url}


def test_an_answer_streams_with_alternatives_for_each_token(page: Page) -> None:
    page.ask("Count from one to twenty in words.")
    lengths = set()
    while not page.all("#turns .counts"):
        lengths.add(len(page.all(".token")))
        time.sleep(0.02)
    assert len(lengths) > 2, "it came in pieces"
    counts = page.counts()
    tokens = page.all(".token.generated")
    assert int(counts["generated"]) == len(tokens) and counts["forced"] == "0"
    answer = page.one(".answer")
    page.driver.execute_script("arguments[0].focus()", answer)
    answer.send_keys(Keys.ARROW_RIGHT)
    assert page.one("#tip").is_displayed()
    shares = [one.text for one in page.all("#tip .share")]
    assert len(shares) in (5, 6) and len(page.all("#tip .taken")) == 1
    assert tokens[1].get_attribute("class") == "token generated picked"
    answer.send_keys(Keys.ESCAPE)
    assert not page.one("#tip").is_displayed()


def test_turns_follow_each_other_and_their_prompt_is_cached(page: Page) -> None:
    for turn, question in enumerate(("My name is Ada.", "What is my name?")):
        page.ask(question)
        counts = page.counts(turn)
    assert int(counts["cached"]) > 20
    prompt = page.all(".prompt")[1]
    prompt.find_element(By.CSS_SELECTOR, "summary").click()
    assert "My name is Ada." in prompt.find_element(By.CSS_SELECTOR, "pre .cached").text
    page.one("#clear").click()
    assert page.all(".turn") == [] and page.one("#empty").is_displayed()


@pytest.mark.parametrize("alternatives", [True, False])
def test_what_a_constraint_forces_is_coloured(page: Page, alternatives: bool) -> None:
    page.choose("#examples button", "person")
    if not alternatives:
        page.one("#alternatives").click()
    page.one("#question").send_keys(Keys.ENTER)
    counts = page.counts()
    forced, generated = (page.all(f".token.{kind}") for kind in ("forced", "generated"))
    assert len(forced) > 2 and len(generated) > 2
    assert (int(counts["forced"]), int(counts["generated"])) == (len(forced), len(generated))
    made = len(forced) + len(generated)
    forwards = int(counts["forwards"])
    assert forwards >= made if alternatives else forwards <= len(generated) + 2
    colours = {kind[0].value_of_css_property("background-color") for kind in (forced, generated)}
    assert len(colours) == 2


def ask_for_much(page: Page) -> None:
    page.fill("#max_tokens", "4000")
    page.ask("Write a very long story about a river, and go on and on.")
    page.wait(lambda: len(page.all(".token")) > 5)


def test_stopping_frees_what_the_answer_held(page: Page, model_server: RunningServer) -> None:
    ask_for_much(page)
    page.one("#stop").click()
    assert page.counts()["ended by"] == "you"
    port = model_server.context.port
    page.wait(lambda: port.info()["scheduler"]["running"] == 0, 5.0)
    assert page.one("#send").is_displayed()


def test_a_new_conversation_forgets_an_answer_that_was_on_its_way(page: Page) -> None:
    ask_for_much(page)
    page.one("#clear").click()
    page.wait(lambda: page.one("#send").is_displayed())
    page.fill("#max_tokens", "4")
    page.ask("Hi.")
    page.counts()
    prompt = page.one("#turns .prompt pre").get_attribute("textContent") or ""
    assert "Hi." in prompt and prompt.count("<|im_start|>assistant") == 1


def test_what_cannot_be_done_is_said(page: Page) -> None:
    page.choose("#examples button", "date")
    page.fill("#shape", "(never closed")
    page.one("#question").send_keys(Keys.ENTER)
    page.wait(lambda: page.all("#turns .failed"))
    assert "regex" in page.one("#turns .failed").text
    assert [text for text in page.complaints() if "400" not in text] == []


def test_a_key_is_asked_for_and_kept_in_the_tab(model_server: RunningServer) -> None:
    context = replace(model_server.context, keys=ApiKeys(("secret",)), on_shutdown=[])
    context = replace(context, executor=Executor(context.port))
    with serve(context) as server, open_page(server.url) as page:
        assert page.one("#key-dialog").is_displayed()
        page.one("#key").send_keys("secret" + Keys.ENTER)
        page.wait(lambda: "smollm2" in page.one("#model").text)
        page.driver.refresh()
        page.wait(lambda: "smollm2" in page.one("#model").text)
        stored = page.driver.execute_script("return [sessionStorage.length, localStorage.length]")
        assert stored == [1, 0]


def test_the_numbers_of_the_dashboard_move(page: Page, model_server: RunningServer) -> None:
    page.choose('[role="tab"]', "Dashboard")
    page.wait(lambda: page.all(".tile .value"))
    ended = page.fact("#state", "requests ended")
    body = {"messages": [{"role": "user", "content": "Tell me of lighthouses."}], "max_tokens": 30}
    for _ in range(3):
        assert model_server.post("/v1/chat/completions", body).status == 200
    session = model_server.context.programs.open(
        OpenProgram(program_id="shown", name="a_program"), lambda events: None
    )
    session.send([AppendText(0, 0, ("text",)), Fork(0, 1, (1, 2))])
    page.wait(lambda: int(page.fact("#state", "requests ended")) == int(ended) + 3)
    cells = page.wait(lambda: page.texts("#programs-rows td"))
    session.abandon()
    assert (cells[0], cells[2]) == ("a_program", "3")
    page.wait(lambda: len(page.all(".tile polyline")) == 6)
    assert any("Tell me of light" in text for text in page.texts("#tree .text"))
    page.wait(lambda: not page.all("#programs-rows tr"))
    page.choose('[role="tab"]', "Chat")
    page.polls()
    time.sleep(1.5)
    assert page.polls() == 0, "nothing is asked while nobody looks"


def test_guesses_and_adapters_have_tiles_where_there_are_some(
    default_model: Path,
) -> None:
    folder = Path(__file__).parents[2] / "assets" / "adapters"
    adapters = {name: str(folder / name) for name in ("extract", "sql")}
    engine = Engine(str(default_model), kv_tokens=9000, speculative="ngram", adapters=adapters)
    with engine, serve_engine(engine) as server, open_page(server.url) as page:
        page.choose('[role="tab"]', "Dashboard")
        page.wait(lambda: len(page.all(".tile .value")) == 7)
        said = "Say the same again: one two three four five six seven eight. one two three"
        body = {"prompt": said, "max_tokens": 40, "model": "extract", "ignore_eos": True}
        for _ in range(2):
            assert server.post("/v1/completions", body).status == 200
        titles = page.wait(lambda: len(page.all(".tile h3")) == 8 and page.texts(".tile h3"))
        assert titles[6:] == ["Guesses kept a check", f"Adapters ({len(adapters)})"]
        page.wait(lambda: page.texts(".tile .value")[7] == "1")
        assert page.complaints() == []


def test_a_program_runs_with_its_branches_side_by_side(page: Page) -> None:
    page.choose('[role="tab"]', "Programs")
    page.choose("#graph-examples button", "views")
    page.wait(lambda: len(page.all(".fork > .lane")) == 2)
    assert [box.get_attribute("value") for box in page.all("#arguments input")] == ["homework"]
    boxes = [lane.rect for lane in page.all(".fork > .lane")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.one("#run").click()
    page.wait(lambda: page.all("#result .counts"))
    views = page.texts(".fork .piece.gen")
    assert len(views) == 2 and all(views) and len(page.texts(".choices > span")) == 3
    said = page.one("#lanes > .lane").text.replace("\n", " ")
    for view, side in zip(views, ("good", "bad"), strict=True):
        assert f"It is {side} that{view}" in said
    shown = dict(zip(page.texts(".variables dt"), page.texts(".variables dd"), strict=False))
    assert shown["view"] == views[0].strip() or shown["view"] == views[0]
    page.driver.switch_to.frame(page.one("#trace iframe"))
    story = page.wait(lambda: page.one("#story").text)
    for view, side in zip(views, ("good", "bad"), strict=True):
        assert f"It is {side} that{view}" in story
    assert "traced, not run" not in page.one("header").text
    page.driver.switch_to.default_content()


def test_a_node_that_fails_says_so_where_it_stands(page: Page) -> None:
    page.choose('[role="tab"]', "Programs")
    page.choose("#graph-examples button", "views")
    page.wait(lambda: page.all("#arguments input"))
    page.driver.execute_script(
        "arguments[0].value = 'more than the context holds '.repeat(3000)",
        page.one("#arguments input"),
    )
    page.one("#run").click()
    page.wait(lambda: page.all("#result .failed"))
    for place in (".piece.failed", "#result .failed"):
        assert "a sequence holds" in page.one(place).text


def test_a_graph_that_is_none_is_refused_before_it_is_sent(page: Page) -> None:
    page.choose('[role="tab"]', "Programs")
    page.one("#graph").send_keys("{")
    assert "no request graph" in page.one("#graph-problem").text
    assert not page.one("#run").is_enabled()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(page: Page, theme: str) -> None:
    page.size(390, 844, theme)
    for tab in page.all('[role="tab"]'):
        tab.click()
        wide = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 390
    shown = page.driver.execute_script("return document.documentElement.dataset.theme")
    assert shown == theme


def test_an_adapter_can_be_chosen_to_answer() -> None:
    engine = AdaptedEngine("sql")
    context = make_context(engine, engine.tokenizer, model_names=("m",))  # type: ignore[arg-type]
    with serve(context) as server, open_page(server.url) as page:
        page.wait(lambda: page.one("#writers").is_displayed())
        assert page.texts("#writer option") == ["m", "sql (adapter)"]
        page.ask("q")
        assert "adapter" not in page.counts()
        page.choose("#writer option", "sql (adapter)")
        page.ask("q")
        assert page.counts(1)["adapter"] == "sql"
        assert [request.adapter for request in engine.requests] == ["", "sql"]
        engine.unload_adapter("sql", lambda answer: None)
        for tab in ("#tab-dashboard", "#tab-chat"):
            page.one(tab).click()
        page.wait(lambda: not page.one("#writers").is_displayed())
        assert page.complaints() == []
