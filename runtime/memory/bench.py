"""Times of the prefix cache: `python -m branchline.runtime.memory.bench`.

Fixed seed and workload; each figure is the best and the median of several repeats, in microseconds
per operation. The last line is one JSON document. Measures; decides nothing.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.types import TokenIds

REPEATS = 7
Times = dict[str, float]


def timed(operation: Callable[[], object], count: int) -> Times:
    """Microseconds of one call: best and median over the repeats of `count` calls each."""
    operation()
    samples = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(count):
            operation()
        samples.append((time.perf_counter() - started) / count * 1e6)
    return {"best_us": round(min(samples), 2), "median_us": round(statistics.median(samples), 2)}


def run_prompt(manager: CacheManager, ids: TokenIds) -> None:
    """One whole request: match, lock, attach, extend, commit, release."""
    match = manager.match(ids[:-1])
    manager.lock(match.handle)
    row = manager.allocate_row()
    if row is None:
        raise RuntimeError("no row is free")
    manager.attach(row, match.handle)
    if not manager.extend(row, match.cached_len, len(ids)):
        raise RuntimeError("memory is short")
    handle = manager.commit(row, ids, len(ids), match.handle)
    manager.release(row, ids, len(ids), handle)


def grown_tree(rng: np.random.Generator, prompts: int) -> tuple[CacheManager, list[TokenIds]]:
    """A cache of `prompts` prompts of 200 tokens that share prefixes of 0 … 150 tokens."""
    manager = CacheManager(prompts * 120, 1, 4, 4096)
    keys: list[TokenIds] = []
    for _ in range(prompts):
        ids = rng.integers(0, 49_000, 200, dtype=np.int32)
        if keys:
            shared = int(rng.integers(0, 4)) * 50
            ids[:shared] = keys[int(rng.integers(len(keys)))][:shared]
        keys.append(ids)
        run_prompt(manager, ids)
    return manager, keys


def measure() -> dict[str, Times]:
    """All figures by name."""
    rng = np.random.default_rng(0)
    results: dict[str, Times] = {}

    single = CacheManager(20_000, 1, 4, 4096)
    prompt = rng.integers(0, 49_000, 1000, dtype=np.int32)
    run_prompt(single, prompt)
    results["match, 1000 tokens cached in 1 node"] = timed(lambda: single.match(prompt), 2000)
    for end in range(100, 1000, 100):
        single.match(prompt[:end])
    results["match, 1000 tokens cached in 10 nodes"] = timed(lambda: single.match(prompt), 2000)
    results["match_len, 1000 tokens in 10 nodes"] = timed(lambda: single.match_len(prompt), 2000)

    handle = single.match(prompt).handle

    def lock_and_unlock() -> None:
        single.lock(handle)
        single.unlock(handle)

    results["lock + unlock, 10 nodes deep"] = timed(lock_and_unlock, 2000)
    results["whole request, 1000 tokens cached"] = timed(lambda: run_prompt(single, prompt), 500)

    grown, keys = grown_tree(rng, 8000)
    picks = random.Random(0)
    results["match, 200 tokens, 8000 prompts cached"] = timed(
        lambda: grown.match(keys[picks.randrange(8000)]), 2000
    )
    results["whole request, 200 new tokens, pool full (evicts)"] = timed(
        lambda: run_prompt(grown, rng.integers(0, 49_000, 200, dtype=np.int32)), 500
    )
    row = grown.allocate_row()
    if row is None:
        raise RuntimeError("no row is free")
    length = 0

    def decode() -> None:
        nonlocal length
        grown.extend(row, length, length + 1)
        length += 1

    results["extend by one token, pool full (evicts)"] = timed(decode, 500)
    grown.free_row(row)
    results["audit, 8000 prompts cached"] = timed(grown.audit, 1)
    return results


def main() -> None:
    """Print the table, then the JSON line."""
    results = measure()
    for name, times in results.items():
        print(f"{name:52} {times['best_us']:10.2f} us  (median {times['median_us']:.2f})")
    machine = {"python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps({"bench": "memory", **machine, "repeats": REPEATS, "results": results}))


if __name__ == "__main__":
    main()
