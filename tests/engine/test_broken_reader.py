"""Law 4 where text is read: what breaks there ends one request, and is its error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.port_driver import PortDriver
from tests.support.tiny_engine import tiny_engine, write_tiny_model


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"stream": True}, id="as it comes"),
        pytest.param({"stop_regex": "neverneverever"}, id="aside"),
        pytest.param({}, id="at the end"),
    ],
)
def test_a_reader_that_breaks_ends_its_own_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with tiny_engine(write_tiny_model(tmp_path / "tiny")) as engine:
        driver = PortDriver(engine.core)
        plain = [driver.generate([i], 30) for i in (1, 2)]
        one, two = (call.result.token_ids for call in plain)
        poison = next(token for token in one if token not in two)
        token_bytes, decode = engine.tokenizer.token_bytes, engine.tokenizer.decode

        def broken_bytes(token: int) -> bytes:
            if token == poison:
                raise RuntimeError("a damaged vocabulary")
            return token_bytes(token)

        def broken_decode(ids: Sequence[int], *, skip_special: bool = True) -> str:
            if poison in ids:
                raise RuntimeError("a damaged vocabulary")
            return decode(ids, skip_special=skip_special)

        monkeypatch.setattr(engine.tokenizer, "token_bytes", broken_bytes)
        monkeypatch.setattr(engine.tokenizer, "decode", broken_decode)
        broken, other = driver.submit(
            driver.request([1], 30, **options), driver.request([2], 30, **options)
        )
        assert other.result.token_ids == two and other.result.error is None
        assert broken.result.meta.finish_reason == "error"
        assert broken.result.error is not None
        assert "a damaged vocabulary" in str(broken.result.error["message"])
        assert driver.generate([2], 30, **options).result.token_ids == two
        assert engine.info()["scheduler"]["unfinished"] == 0
