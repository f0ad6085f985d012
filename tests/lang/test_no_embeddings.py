"""Ports without a model of their own refuse to embed, before anything is done."""

from __future__ import annotations

import pytest

from branchline.lang.backends.loop_thread import LoopThread
from branchline.lang.backends.openai_http import OpenAIClient
from branchline.lang.backends.openai_port import OpenAIPort
from branchline.lang.backends.scripted import EventLoop, ScriptedEngine
from branchline.lang.errors import UnsupportedFeature
from branchline.runtime.core.messages import EmbedRequest
from branchline.runtime.core.outputs import Output


def forbidden(output: Output) -> None:
    raise AssertionError(f"an output for a refused request: {output}")


def test_a_scripted_engine_and_an_openai_server_refuse() -> None:
    loop, thread = EventLoop(), LoopThread("test-openai")
    client = OpenAIClient("http://127.0.0.1:9/v1", None, max_retries=0, timeout_s=1.0)
    request = EmbedRequest(id="r", prompt_ids=[104, 105])
    try:
        scripted = ScriptedEngine(lambda name, text: "x", loop, 0.0)
        with pytest.raises(UnsupportedFeature, match="Use an Engine"):
            scripted.submit(request, forbidden)
        with pytest.raises(UnsupportedFeature, match="/v1/embeddings"):
            OpenAIPort("m", client, thread).submit(request, forbidden)
    finally:
        thread.stop(wait=True)
        loop.stop()
