"""Serving until it is told to stop: what runs gets its time, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import grpc
import grpc.aio
import pytest

from branchline.runtime.server.app import create_app
from branchline.runtime.server.context import make_context
from branchline.runtime.server.grpc_api.service import GrpcServer
from branchline.runtime.server.run import Entrance, Stopping, run
from tests.server.test_grpc import generate_call, request
from tests.support.spelled_port import SpelledPort


@dataclass
class Serving:
    """A server that runs, and a channel to it."""

    port: SpelledPort
    url: str
    channel: grpc.aio.Channel
    stopping: Stopping
    ended: asyncio.Task[bool]

    def end_requests(self) -> None:
        for one in self.port.requests:
            self.port.call_soon(lambda name=one.id: self.port.abort(name))  # type: ignore[misc]


@asynccontextmanager
async def serving(drain_timeout_s: float) -> AsyncIterator[Serving]:
    port = SpelledPort(lambda prompt, index: "text")
    port.endless = True
    stopping = Stopping()
    context = make_context(port, port.tokenizer)
    app = create_app(context)
    calls = GrpcServer(context, "127.0.0.1:0")
    await calls.start()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(
        run(
            app,
            context,
            stopping,
            entrance=Entrance(app),
            host="127.0.0.1",
            port=0,
            drain_timeout_s=drain_timeout_s,
            listening=address.set_result,
            calls=calls,
        )
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{calls.port}") as channel:
        yield Serving(port, await address, channel, stopping, ended)
    await asyncio.wait_for(ended, 20)
    context.executor.close()
    port.close()


def test_calls_that_run_are_finished_and_no_more_are_taken() -> None:
    async def scenario() -> None:
        async with serving(60.0) as server:
            call = generate_call(server.channel)(request(stream=True))
            await call.read()
            server.stopping.ask()
            await asyncio.sleep(0.3)
            assert not server.ended.done()
            with pytest.raises(grpc.RpcError) as caught:
                await generate_call(server.channel)(request()).read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            async with aiohttp.ClientSession() as http:
                assert (await http.post(server.url + "/generate", json={"text": "x"})).status == 503
            server.end_requests()
            while not (await call.read()).HasField("result"):
                pass
            assert await asyncio.wait_for(server.ended, 10)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["its time is over", "told twice"])
def test_a_call_that_does_not_end_is_not_waited_for_without_end(how: str) -> None:
    async def scenario() -> None:
        async with serving(60.0 if how == "told twice" else 0.2) as server:
            call = generate_call(server.channel)(request(stream=True))
            await call.read()
            server.stopping.ask()
            if how == "told twice":
                await asyncio.sleep(0.2)
                server.stopping.insist()
            assert not await asyncio.wait_for(server.ended, 20)
            with pytest.raises(grpc.RpcError):
                while True:
                    await call.read()
            assert server.port.aborted.wait(10)

    asyncio.run(scenario())
