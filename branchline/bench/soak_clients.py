"""Clients that a server has to bear: drawn from a seed, some leave at a random point.

Every request that stays must get its whole answer; what is invalid must be refused as that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from branchline.bench.serve_programs import PROGRAMS
from branchline.bench.serve_work import RECORD, Target, json_format, run_program
from branchline.bench.shapes import words
from branchline.runtime.bench.latency import Timing
from branchline.runtime.errors import BranchlineError

LEAVES = 0.3
"""Share of requests whose client leaves."""

REGEXES = (r"[a-z]{1,20}", r"(yes|no|perhaps)", r"\d{4}-\d{2}-\d{2}", r"([A-Z][a-z]+ ){2,5}")
EBNFS = (
    'root ::= item ("," item)*\nitem ::= [a-z]+ | "(" root ")"',
    'root ::= "a" root "b" | "c"',
)
BROKEN: tuple[dict[str, Any], ...] = (
    {"regex": "(["},
    {"ebnf": "root ::= missing"},
    {"temperature": -1},
    {"max_tokens": -5},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}},
)


@dataclass(slots=True)
class Tally:
    """What became of all requests.

    Attributes:
        ended: by kind, those that got what they had to get.
        left: by kind, those whose client left.
        lost: why others did not; the first of each kind of reason is enough.
    """

    ended: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


class Crowd:
    """Sends requests until told to stop.

    Args:
        seed: of everything that is drawn; the order of arrivals is the machine's.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self.tally = Tally()
        self._target = target
        self._rng = random.Random(seed)
        self._kinds: dict[str, Callable[[random.Random, Timing, bool], Awaitable[int]]] = {
            "text": self._text,
            "chat": self._chat,
            "json": self._json,
            "pattern": self._pattern,
            "whole": self._whole,
            "program": self._program,
            "broken": self._broken,
        }

    async def run(self, at_once: int, stop: asyncio.Event) -> None:
        """Keep `at_once` requests open; after `stop`, let those under way end."""
        await asyncio.gather(*(self._work(stop) for _ in range(at_once)))

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            rng = random.Random(self._rng.getrandbits(64))
            kind = rng.choice(tuple(self._kinds))
            leaves = kind != "broken" and rng.random() < LEAVES
            timing = Timing(time.perf_counter())
            try:
                tokens = await self._kinds[kind](rng, timing, leaves)
            except (BranchlineError, aiohttp.ClientError, TimeoutError) as error:
                self.tally.lost.append(f"{kind}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.1)  # a server that refuses is not asked in a tight loop
                continue
            self.tally.gaps += timing.gaps
            self.tally.tokens += tokens
            (self.tally.left if leaves else self.tally.ended)[kind] += 1

    async def _text(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        body = {
            "prompt": f"{words(100, rng.randrange(8))}\n{words(20, rng.randrange(10**6))}",
            "max_tokens": rng.randint(1, 64),
            "n": rng.choice((1, 1, 1, 3)),
            "temperature": 0.8,
            "seed": rng.randrange(1000),
        }
        return await self._stream("/v1/completions", body, rng, timing, leaves)

    async def _chat(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        return await self._stream("/v1/chat/completions", _chat_body(rng), rng, timing, leaves)

    async def _json(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        names = rng.sample(list(RECORD["properties"]), rng.randint(1, 4))
        schema = RECORD | {
            "properties": {name: RECORD["properties"][name] for name in names},
            "required": names,
        }
        body = _chat_body(rng) | {"response_format": json_format(schema)}
        return await self._stream("/v1/chat/completions", body, rng, timing, leaves)

    async def _pattern(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        constraint = rng.choice(
            [*({"regex": one} for one in REGEXES), *({"ebnf": one} for one in EBNFS)]
        )
        body = _chat_body(rng) | constraint
        return await self._stream("/v1/chat/completions", body, rng, timing, leaves)

    async def _whole(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        """Not a stream; its client leaves after a random time."""
        asked = self._target.client.post("/v1/chat/completions", _chat_body(rng))
        if not leaves:
            answer = await asked
            tokens: int = answer["usage"]["completion_tokens"]
            return tokens
        task = asyncio.ensure_future(asked)
        await asyncio.wait([task], timeout=rng.uniform(0.0, 1.0))
        if task.done():
            task.result()
        else:
            task.cancel()
            await asyncio.wait([task])
        return 0

    async def _program(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        program = rng.choice(tuple(PROGRAMS.values()))
        seed, endpoint = rng.randrange(10**6), self._target.endpoint
        if not leaves:
            return await run_program(program, endpoint, seed, Timing(timing.begin_s))
        after = rng.randint(0, 20)
        async with aclosing(program.astream(seed=seed, backend=endpoint)) as events:  # type: ignore[type-var]
            async for _ in events:
                after -= 1
                if after < 0:
                    break
        return 0

    async def _broken(self, rng: random.Random, timing: Timing, leaves: bool) -> int:
        """Must be refused as the client's mistake."""
        body = _chat_body(rng) | rng.choice(BROKEN)
        status = await self._target.client.status("/v1/chat/completions", body)
        if not 400 <= status < 500 or status == 429:
            self.tally.lost.append(f"broken: HTTP {status} for {body}")
        return 0

    async def _stream(
        self, path: str, body: dict[str, Any], rng: random.Random, timing: Timing, leaves: bool
    ) -> int:
        client = self._target.client
        if not leaves:
            return await client.stream(path, body, timing)
        after = rng.randint(0, 30)
        async with aclosing(client.chunks(path, body)) as chunks:
            async for _ in chunks:
                after -= 1
                if after < 0:
                    break
        return 0


def _chat_body(rng: random.Random) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": words(40, rng.randrange(4))},
            {"role": "user", "content": words(rng.randint(1, 60), rng.randrange(10**6))},
        ],
        "max_tokens": rng.randint(1, 64),
        "temperature": 0.8,
        "seed": rng.randrange(1000),
    }
