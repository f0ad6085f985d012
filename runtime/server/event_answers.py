"""Answers of APIs whose streams are named events, each with its name as `type`.

Law: an answer without a stream is put together from the very events that a stream would send.
Knows no format of any API.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.server.answers import AnswerReader, Part
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import ErrorBody
from branchline.runtime.server.generation import Job, Options, generate
from branchline.runtime.server.wire import event_stream, json_response

Json = dict[str, Any]


class EventWriter(ABC):
    """Writes one output as events.

    Args:
        reader: of the output.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self.reader = reader
        self._streams = False

    @abstractmethod
    def begin(self) -> Iterator[Json]:
        """What comes before the output."""

    @abstractmethod
    def write(self, parts: Sequence[Part]) -> Iterator[Json]:
        """More of the output."""

    @abstractmethod
    def end(self, result: GenerateResult) -> Iterator[Json]:
        """What comes behind it."""

    @abstractmethod
    def whole(self, events: Sequence[Json]) -> Json:
        """The answer that all events add up to."""

    def read(self, output: GenerateDelta | GenerateResult) -> Iterator[Json]:
        """Events for what is new."""
        if isinstance(output, GenerateDelta):
            self._streams = True
            yield from self.write(self.reader.feed(output.text))
            return
        if not self._streams:
            yield from self.write(self.reader.feed(output.text))
        yield from self.write(self.reader.finish())
        yield from self.end(output)


async def answer(
    request: web.Request,
    context: ServerContext,
    job: Job,
    options: Options,
    *,
    writer: EventWriter,
    error_body: ErrorBody,
) -> web.StreamResponse:
    """Run `job`, for one output; answer with its events, or with what they add up to."""
    if not options.stream:
        told = [*writer.begin()]
        async with generate(request, context, [job], options) as steps:
            async for step in steps:
                told += writer.read(step.output)
        return json_response(writer.whole(told))
    async with event_stream(request, context.limits, error_body, "error") as events:
        for event in writer.begin():
            await events.send(event, event["type"])
        async with generate(request, context, [job], options) as steps:
            async for step in steps:
                for event in writer.read(step.output):
                    await events.send(event, event["type"])
    return events.response
