"""The engine as its caller sees it: results, streams, errors, and laws 2, 4, 5 and 6 end to end."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path

import pytest

from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidRequest,
    ModelLoadError,
    OutOfMemory,
    UnsupportedConstraint,
)

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):",
    "The three primary colours are",
]


def ids(engine: Engine, count: int, lo: int, hi: int) -> list[list[int]]:
    r = random.Random(7)
    top = engine.tokenizer.vocab_size - 100
    return [[r.randrange(100, top) for _ in range(r.randint(lo, hi))] for _ in range(count)]


def greedy(engine: Engine, prompts: list[list[int]], count: int = 12) -> list[list[int]]:
    results = engine.generate(prompts, temperature=0.0, max_tokens=count, ignore_eos=True)
    return [result.token_ids for result in results]


def test_results_say_what_was_done(engine: Engine) -> None:
    engine.flush_cache()
    result = engine.generate(PROMPTS[0], temperature=0.0, max_tokens=8)
    assert result.text.startswith(" Paris")
    assert engine.tokenizer.decode(result.token_ids) == result.text
    meta = result.meta
    assert (meta.output_tokens, meta.forwards, meta.finish_reason) == (8, 8, "length")
    assert 0 < meta.ttft_s <= meta.latency_s
    again = engine.generate(PROMPTS[0], temperature=0.0, max_tokens=8)
    assert again.token_ids == result.token_ids
    assert again.meta.cached_tokens == meta.prompt_tokens - 1


def test_greedy_output_does_not_depend_on_batch_cache_or_chunks(default_model: Path) -> None:
    with Engine(str(default_model), kv_tokens=9000, prefix_cache=False, overlap=False) as plain:
        work = ids(plain, 6, 1, 120) + [plain.tokenizer.encode(p) for p in PROMPTS]
        alone = [greedy(plain, [prompt])[0] for prompt in work]
    for settings in (
        {},
        {"max_step_tokens": 24, "policy": "fcfs"},
        {"overlap": False, "page_size": 16},
        {"max_step_tokens": 40, "max_running_requests": 3, "threads": 1},
    ):
        with Engine(str(default_model), kv_tokens=9008, **settings) as engine:
            assert greedy(engine, work) == alone, settings
            assert greedy(engine, work[::-1]) == alone[::-1], "with every prefix cached"


def test_prompts_may_have_parameters_of_their_own(engine: Engine) -> None:
    prompts = [[1, 2, 3], [4, 5]]
    results = engine.generate(
        prompts, [{"max_tokens": n, "temperature": 0.0} for n in (2, 5)], ignore_eos=True
    )
    assert [len(result.token_ids) for result in results] == [2, 5]
    with pytest.raises(InvalidRequest, match="1 for 2"):
        engine.generate(prompts, [{"max_tokens": 2}])


def test_a_retracted_request_has_the_same_output(default_model: Path) -> None:
    with Engine(str(default_model), kv_tokens=9000) as roomy:
        work = ids(roomy, 6, 30, 40)
        expected = greedy(roomy, work, 60)
    with Engine(str(default_model), kv_tokens=256, context_length=200) as tight:
        assert greedy(tight, work, 60) == expected
        assert tight.info()["scheduler"]["retractions"] > 0


def test_seeds_give_the_same_tokens_whatever_the_batch(engine: Engine) -> None:
    alone = engine.generate(PROMPTS[1], seed=5, max_tokens=16, top_p=0.9, top_k=40)
    crowd = engine.generate(
        [PROMPTS[0], PROMPTS[1], PROMPTS[2]], seed=5, max_tokens=16, top_p=0.9, top_k=40
    )
    assert crowd[1].token_ids == alone.token_ids
    assert alone.meta.seed == 5
    drawn = engine.generate(PROMPTS[1], max_tokens=16)
    repeat = engine.generate(PROMPTS[1], max_tokens=16, seed=drawn.meta.seed)
    assert repeat.token_ids == drawn.token_ids


def test_n_outputs_differ_and_can_be_repeated(engine: Engine) -> None:
    first = engine.generate(PROMPTS[1], n=3, seed=11, max_tokens=8)
    second = engine.generate(PROMPTS[1], n=3, seed=11, max_tokens=8)
    assert [r.token_ids for r in first] == [r.token_ids for r in second]
    assert len({r.text for r in first}) == 3


def test_stops_end_the_text_before_them(engine: Engine) -> None:
    plain = engine.generate(PROMPTS[3], temperature=0.0, max_tokens=40)
    cut = plain.text.index(",")
    by_text = engine.generate(PROMPTS[3], temperature=0.0, max_tokens=40, stop=",")
    by_regex = engine.generate(PROMPTS[3], temperature=0.0, max_tokens=40, stop_regex="[,;]")
    for result in (by_text, by_regex):
        assert result.text == plain.text[:cut]
        assert result.meta.finish_reason == "stop"
        assert engine.tokenizer.decode(result.token_ids) == result.text


def test_a_stop_pattern_ends_its_own_sequence_alone(engine: Engine) -> None:
    options = {"seed": 11, "max_tokens": 40, "stop_regex": "[.,!?]"}
    several = engine.generate(PROMPTS[1], n=4, **options)
    plain = engine.generate(PROMPTS[1], n=4, seed=11, max_tokens=40)
    for stopped, whole in zip(several, plain, strict=True):
        cut = next((at for at, char in enumerate(whole.text) if char in ".,!?"), None)
        assert stopped.text == whole.text[:cut]
        assert (stopped.meta.finish_reason == "stop") >= (cut is not None)
    assert len({len(stopped.text) for stopped in several}) > 1


def test_a_stream_joins_to_the_result(engine: Engine) -> None:
    whole = engine.generate(PROMPTS[1], temperature=0.0, max_tokens=20)
    outputs = list(engine.stream(PROMPTS[1], temperature=0.0, max_tokens=20, logprobs=1))
    deltas = [item for item in outputs if isinstance(item, GenerateDelta)]
    result = outputs[-1]
    assert isinstance(result, GenerateResult)
    assert "".join(item.text for item in deltas) == whole.text == result.text
    assert len(deltas) > 5
    assert len(result.logprobs) == 20
    for entry in result.logprobs:
        assert entry.top[0][0] == entry.token_id
        assert entry.top[0][1] == pytest.approx(entry.logprob, abs=1e-5)


def test_leaving_a_stream_ends_its_request(engine: Engine) -> None:
    stream = engine.stream(PROMPTS[1], temperature=0.0, max_tokens=4000, ignore_eos=True)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while engine.info()["scheduler"]["unfinished"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.info()["scheduler"]["unfinished"] == 0


def test_async_calls_run_together_and_can_be_cancelled(engine: Engine) -> None:
    async def main() -> list[str]:
        tasks = [engine.agenerate(p, temperature=0.0, max_tokens=6) for p in PROMPTS]
        texts = [result.text for result in await asyncio.gather(*tasks)]
        endless = asyncio.create_task(
            engine.agenerate(PROMPTS[0], max_tokens=4000, ignore_eos=True)
        )
        await asyncio.sleep(0.1)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        async for item in engine.astream(PROMPTS[0], temperature=0.0, max_tokens=3):
            texts.append(item.text)
        return texts

    texts = asyncio.run(main())
    assert texts[:4] == [engine.generate(p, temperature=0.0, max_tokens=6).text for p in PROMPTS]
    assert "".join(texts[4:-1]) == texts[-1]


def test_scores_equal_the_logprobs_of_running_each_choice(engine: Engine) -> None:
    choices = [" Paris", " London, in England", " London, of course", " 42"]
    scored = engine.score(PROMPTS[0], choices)
    head = engine.tokenizer.encode(PROMPTS[0])
    for choice, values in zip(choices, scored.token_logprobs, strict=True):
        tail = engine.tokenizer.encode(choice)
        run = engine.generate([head + tail], max_tokens=1, prompt_logprobs=0)[0]
        expected = [entry.logprob for entry in run.prompt_logprobs[-len(tail) :]]
        assert values == pytest.approx(expected, abs=1e-4)
    assert scored.meta.forwards == 1


def test_constraints_hold_and_end_by_themselves(engine: Engine) -> None:
    pattern = Constraint(kind="regex", text=r"[0-9]{2}:[0-5][0-9]")
    results = engine.generate([PROMPTS[0]] * 3, max_tokens=20, constraint=pattern)
    for result in results:
        assert len(result.text) == 5 and result.text[2] == ":"
        assert result.meta.finish_reason == "constraint"
    with pytest.raises(UnsupportedConstraint, match="look"):
        engine.generate(PROMPTS[0], constraint=Constraint(kind="regex", text="(?=a)b"))


def test_forced_tokens_save_forwards_and_change_nothing(engine: Engine) -> None:
    schema = Constraint(
        kind="json_schema",
        text='{"type": "object", "properties": {"first_name": {"enum": ["Ada", "Alan"]}, '
        '"occupation": {"enum": ["mathematician", "engineer"]}}, '
        '"required": ["first_name", "occupation"], "additionalProperties": false}',
    )
    fast = engine.generate(PROMPTS[0], temperature=0.0, max_tokens=60, constraint=schema)
    slow = engine.generate(
        PROMPTS[0], temperature=0.0, max_tokens=60, constraint=schema, logprobs=0
    )
    assert fast.token_ids == slow.token_ids and fast.text == slow.text
    assert fast.meta.finish_reason == "constraint"
    assert fast.meta.forced_tokens > 0 and slow.meta.forced_tokens == 0
    assert len(fast.forced) == fast.meta.forced_tokens and fast.forced == slow.forced
    assert fast.meta.forwards < 0.6 * slow.meta.forwards


def test_a_deadline_ends_with_its_own_error(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.generate(PROMPTS[0], max_tokens=4000, ignore_eos=True, deadline_s=0.2)
    assert engine.generate(PROMPTS[0], max_tokens=2).text


def test_bad_values_are_named_and_the_engine_goes_on(engine: Engine) -> None:
    for options, needle in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temprature": 1.0}, "temprature"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [10**7]}, "stop_token_ids"),
    ):
        with pytest.raises(InvalidRequest, match=needle):
            engine.generate(PROMPTS[0], **options)
    with pytest.raises(InvalidRequest, match="8192"):
        engine.generate([[5] * 9000], max_tokens=1)
    with pytest.raises(InvalidRequest, match="empty"):
        engine.generate("", max_tokens=1)
    with pytest.raises(InvalidRequest, match="no choices"):
        engine.score(PROMPTS[0], [])
    with pytest.raises(InvalidRequest, match="temperature"):
        engine.score(PROMPTS[0], [" Paris"], temperature=0.5)
    assert (
        engine.generate(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=1)).text == " Paris"
    )


def test_bad_settings_are_named(default_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"page_sise.*page_size"):
        Engine(str(default_model), page_sise=2)
    with pytest.raises(InvalidRequest, match="policy"):
        Engine(str(default_model), policy="random")
    with pytest.raises(InvalidRequest, match="context_length"):
        Engine(str(default_model), context_length=10**6)
    with pytest.raises(OutOfMemory, match="key-value"):
        Engine(str(default_model), kv_tokens=10**12)
    with pytest.raises(OutOfMemory, match="context"):
        Engine(str(default_model), kv_tokens=100)
    with pytest.raises(ModelLoadError, match="nowhere"):
        Engine(str(tmp_path / "nowhere.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelLoadError, match=r"broken\.gguf"):
        Engine(str(broken))


def test_many_threads_may_call_at_once(engine: Engine) -> None:
    expected = engine.generate(PROMPTS[0], temperature=0.0, max_tokens=5).text
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                engine.generate(PROMPTS[0], temperature=0.0, max_tokens=5).text
            )
        )
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 12


def test_random_aborts_leave_no_memory_behind(engine: Engine) -> None:
    engine.flush_cache()
    r = random.Random(3)
    streams = [
        engine.stream(prompt, max_tokens=200, ignore_eos=True) for prompt in ids(engine, 24, 1, 60)
    ]
    for stream in streams:
        next(stream)
        if r.random() < 0.5:
            next(stream)
    r.shuffle(streams)
    for stream in streams:
        stream.close()
    assert engine.generate(PROMPTS[0], max_tokens=2).text
    engine.flush_cache()
    info = engine.info()
    assert info["cache"]["violations"] == 0
    assert info["cache"]["free_tokens"] == info["cache"]["capacity_tokens"]


def test_a_closed_engine_says_so(default_model: Path) -> None:
    engine = Engine(str(default_model), kv_tokens=9000)
    stream = engine.stream(PROMPTS[0], max_tokens=4000, ignore_eos=True)
    next(stream)
    left = engine.stream(PROMPTS[1], max_tokens=4000, ignore_eos=True)
    next(left)
    engine.close()
    engine.close()
    left.close()  # nothing is left to be ended
    with pytest.raises(BackendError, match="closed"):
        list(stream)
    with pytest.raises(BackendError, match="closed"):
        engine.generate(PROMPTS[0])


def test_an_idle_engine_makes_ready_for_constraints(default_model: Path) -> None:
    with Engine(str(default_model), kv_tokens=9000) as engine:
        end = time.monotonic() + 60
        while not engine._parts.grammars.stats():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)
        assert engine.generate("Yes or", constraint=Constraint(kind="regex", text="no")).text


def test_meta_says_who_enforced_a_constraint_and_why(engine: Engine) -> None:
    ebnf = engine.generate("Yes or", constraint=Constraint(kind="ebnf", text='root ::= "no"'))
    assert ebnf.meta.grammar.startswith("xgrammar: reads this dialect")
    regex = engine.generate("Yes or", constraint=Constraint(kind="regex", text="no|yes"))
    assert regex.meta.grammar.startswith("llguidance: ")
    assert engine.generate("Yes or", max_tokens=1).meta.grammar == ""
