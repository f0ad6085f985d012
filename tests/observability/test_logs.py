"""Log lines: a JSON object each, with the request they belong to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from branchline.runtime.observability.logs import request_id, set_up_logs


@pytest.fixture(autouse=True)
def root_handlers() -> Iterator[None]:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def test_a_json_line_has_the_request_the_extras_and_the_traceback() -> None:
    stream = io.StringIO()
    set_up_logs("json", "info", "http", stream)
    token = request_id.set("r-7")
    try:
        try:
            raise ValueError("of\nno use")
        except ValueError:
            logging.getLogger("a.room").exception("it %s", "failed", extra={"rows": {1}})
    finally:
        request_id.reset(token)
    logging.getLogger("a.room").debug("below the level")
    (text,) = stream.getvalue().splitlines()
    line = json.loads(text)
    assert line["message"] == "it failed"
    assert line["level"] == "error"
    assert (line["logger"], line["process"]) == ("a.room", "http")
    assert line["request_id"] == "r-7"
    assert line["rows"] == [1]
    assert "ValueError: of\nno use" in line["exception"]
    assert line["time"].endswith("Z")


def test_a_text_line_names_the_request_only_while_it_is_served() -> None:
    stream = io.StringIO()
    set_up_logs("text", "warning", "http", stream)
    token = request_id.set("r-8")
    logging.getLogger("a.room").warning("one")
    request_id.reset(token)
    logging.getLogger("a.room").warning("two")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("WARNING http: one [r-8]")
    assert second.endswith("WARNING http: two")
