"""Laws of reading one output: every split into steps gives the same text, stop and result."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.core.outputs import (
    FinishReason,
    GenerateDelta,
    GenerateResult,
    RequestMeta,
    TokenLogprob,
)
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.sequence_reader import SequenceReader

TEXT = "Ein Löwe, ein Wort. END and more ✓"


def read(
    opened: SequenceOpen, ids: list[int], cuts: list[int], reason: FinishReason = "length"
) -> tuple[str, GenerateResult, bool]:
    """Joined deltas, the result, and whether it stopped; the last piece comes with the end."""
    reader = SequenceReader(ByteTokenizer(), opened)
    shown: list[GenerateDelta] = []
    bounds = sorted({0, *(cut % (len(ids) + 1) for cut in cuts)})
    scores = [TokenLogprob(token, -float(token)) for token in ids]
    for start, end in itertools.pairwise(bounds):
        if not opened.needs_text:
            break
        tokens = SequenceTokens(
            request_id="r", token_ids=ids[start:end], logprobs=scores[start:end]
        )
        shown += [one for one in reader.push(tokens) if isinstance(one, GenerateDelta)]
    rest = bounds[-1] if opened.needs_text else 0
    *deltas, result = reader.end(
        SequenceEnd(
            request_id="r",
            token_ids=ids[rest:],
            logprobs=scores[rest:],
            meta=RequestMeta(finish_reason=reason),
        )
    )
    shown += [one for one in deltas if isinstance(one, GenerateDelta)]
    assert isinstance(result, GenerateResult)
    return "".join(delta.text for delta in shown), result, reader.stopped


@given(
    cuts=st.lists(st.integers(0, 200), max_size=12),
    stream=st.booleans(),
    stop=st.sampled_from([(), ("END",), (" ein", "E"), ("nowhere",)]),
    pattern=st.sampled_from([None, "W[a-z]+t"]),
    keep=st.booleans(),
)
def test_every_split_gives_the_same_result(
    cuts: list[int], stream: bool, stop: tuple[str, ...], pattern: str | None, keep: bool
) -> None:
    opened = SequenceOpen(
        request_id="r", stream=stream, stop=stop, stop_regex=pattern, keep_stop=keep
    )
    ids = ByteTokenizer().encode(TEXT)
    shown, result, stopped = read(opened, ids, cuts)
    marks = [mark for mark in (*stop, "Wort" if pattern else "nowhere") if mark in TEXT]
    ends = [TEXT.index(mark) + (len(mark) if keep else 0) for mark in marks]
    expected = TEXT[: min(ends)] if ends else TEXT
    assert result.text == expected
    assert shown == (expected if stream else "")
    assert stopped == bool(ends)
    assert result.meta.finish_reason == ("stop" if ends else "length")
    assert ByteTokenizer().decode(result.token_ids) == expected
    assert result.meta.output_tokens == len(result.token_ids)
    assert [score.token_id for score in result.logprobs] == result.token_ids


def test_an_error_stays_unless_the_text_had_ended_before() -> None:
    opened = SequenceOpen(request_id="r", stop=("END",))
    for ids, reason in (("a END b", "stop"), ("a b", "abort")):
        _, result, _ = read(opened, ByteTokenizer().encode(ids), [7], "abort")
        assert result.meta.finish_reason == reason
