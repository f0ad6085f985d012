"""Awaiting requests on a port: ends, cancellation, one wake for a burst."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import BackendError, InvalidRequest
from tests.support.spelled_port import SpelledPort


@pytest.fixture
def port() -> Iterator[SpelledPort]:
    """Answers with the output's number, a hundred times."""
    made = SpelledPort(lambda prompt, index: str(index) * 100)
    yield made
    made.close()


def ask(client: EngineClient, n: int = 1, stream: bool = False) -> GenerateRequest:
    return GenerateRequest(
        id=client.new_id(), prompt_ids=[1], sampling=SamplingParams(n=n), stream=stream
    )


def test_outputs_come_in_order_up_to_the_last(port: SpelledPort) -> None:
    client = EngineClient(port)

    async def main() -> None:
        one, two = ask(client, n=2, stream=True), ask(client, n=1)
        found: list[Any] = [output async for output in client.run(one, two)]
        ends = [output.request_id for output in found if isinstance(output, GenerateResult)]
        assert sorted(ends) == sorted([one.id, f"{one.id}#1", two.id])
        deltas = [output for output in found if isinstance(output, GenerateDelta)]
        texts = {i: "".join(d.text for d in deltas if d.request_id == i) for i in ends}
        assert texts == {one.id: "0" * 100, f"{one.id}#1": "1" * 100, two.id: ""}
        results = await client.results(ask(client, n=3))
        assert [result.text[0] for result in results] == ["0", "1", "2"]
        [score] = await client.score(ScoreRequest(id="s", prompt_ids=[1], choices=[[2], [3, 4]]))
        assert [len(row) for row in score.token_logprobs] == [1, 2]
        assert await client.flush() == 7

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_ends_the_request(port: SpelledPort, how: str) -> None:
    port.endless = True
    client = EngineClient(port)

    async def main() -> None:
        request = ask(client, stream=True)

        async def read() -> None:
            async with aclosing(client.run(request)) as outputs:
                async for _ in outputs:
                    if how == "close":
                        break

        task = asyncio.create_task(read())
        if how == "cancel":
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(port.aborted.wait, 10)

    asyncio.run(main())


def test_refusals_are_raised_and_end_the_others(port: SpelledPort) -> None:
    client = EngineClient(port)
    submit = port.submit

    def refusing(request: Any, on_output: Callable[[Any], None]) -> None:
        if request.prompt_ids == [2]:
            raise InvalidRequest("no twos")
        if request.prompt_ids == [3]:
            raise ZeroDivisionError
        submit(request, on_output)

    port.submit = refusing  # type: ignore[method-assign]
    port.endless = True

    async def main() -> None:
        good, bad = ask(client), ask(client)
        bad.prompt_ids = [2]
        with pytest.raises(InvalidRequest, match="no twos"):
            [output async for output in client.run(good, bad)]
        assert await asyncio.to_thread(port.aborted.wait, 10)
        bad.prompt_ids = [3]
        with pytest.raises(BackendError, match="ZeroDivisionError"):
            await client.results(bad)

    asyncio.run(main())


def test_a_burst_wakes_the_event_loop_once(port: SpelledPort) -> None:
    client = EngineClient(port)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wakes = 0
        call = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return call(*arguments, **options)

        request = ask(client, stream=True)
        outputs = client.run(request)
        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        first = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        port.call_soon(lambda: None)
        while len(port.requests) < 1 or port._open:
            pass  # the event loop is held while everything arrives
        loop.call_soon_threadsafe = call  # type: ignore[method-assign]
        await first
        rest = [output async for output in outputs]
        assert len(rest) == 100
        assert wakes == 1

    asyncio.run(main())


def test_a_closed_event_loop_does_not_disturb_the_engine(port: SpelledPort) -> None:
    client = EngineClient(port)
    request = ask(client, stream=True)
    loop = asyncio.new_event_loop()
    outputs = client.run(request)
    loop.run_until_complete(asyncio.wait_for(anext(outputs), 10))
    loop.run_until_complete(outputs.aclose())
    loop.close()

    async def again() -> int:
        return len(await client.results(ask(client)))

    assert asyncio.run(again()) == 1
