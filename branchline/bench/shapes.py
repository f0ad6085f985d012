"""Shapes of programs, as users write them, with fixed lengths so that times compare.

Texts are words drawn from seeds: the same number gives the same program. Every `gen` is greedy and
ignores the end of sequence, except under a constraint.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import branchline as bl

_VOCABULARY = (
    "river stone light garden winter market letter music number window paper engine summer "
    "morning teacher village silver forest bridge answer reason mountain silent travel carry "
    "build learn write open close early never often small large clear strong gentle honest"
)
_WORDS = _VOCABULARY.split()
JSON_RECORD = (
    r'\{"name": "[A-Za-z ]{1,20}", "age": [1-9][0-9]?, "city": "[A-Za-z ]{1,20}", '
    r'"kind": "(person|company|place)", "zip": "[0-9]{5}"\}'
)


ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth")


def words(count: int, seed: int) -> str:
    """`count` words drawn with `seed`."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))


def fixed(name: str, tokens: int) -> bl.Expression:
    """A greedy generation of exactly `tokens` tokens."""
    return bl.gen(name, max_tokens=tokens, temperature=0.0, ignore_eos=True)


@bl.function
def tree_of_thought(s: bl.State, seed: int) -> str:
    """Three plans, each checked twice and judged, then one answer."""
    s += f"Question: {words(60, seed)}?\n"
    with s.fork(3) as plans:
        pairs = []
        for plan, word in zip(plans, ORDINALS, strict=False):
            plan += f"{word} plan:" + fixed("plan", 48)
            pairs.append(plan.fork(2))
            for check, other in zip(pairs[-1], ORDINALS, strict=False):
                check += f"\n{other} check:" + fixed("check", 32)
        # Everything above runs at once; only now does the program wait for a value.
        for plan, pair in zip(plans, pairs, strict=True):
            pair.join()
            plan += f"\nChecks: {' / '.join(plan['check'])}\nVerdict:" + fixed("verdict", 8)
    s += f"Verdicts: {' / '.join(s['verdict'])}\nAnswer:" + fixed("answer", 32)
    return s["answer"]


@cache
def _react_examples() -> str:
    return "".join(
        f"Task: {words(20, 900 + i)}\nThought: {words(40, 910 + i)}\nAction: find {words(4, i)}\n"
        f"Observation: {words(40, 920 + i)}\nAnswer: {words(10, 930 + i)}\n\n"
        for i in range(8)
    )


@bl.function
def react(s: bl.State, seed: int) -> str:
    """Eight worked examples that all programs share, then four rounds of thought and action."""
    s += _react_examples()
    s += f"Task: {words(20, seed)}\n"
    for step in range(4):
        s += "Thought:" + fixed(f"thought_{step}", 24) + "\nAction:" + fixed(f"action_{step}", 6)
        s += f"\nObservation: {words(30, seed + len(s[f'action_{step}']))}\n"
    s += "Answer:" + fixed("answer", 16)
    return s["answer"]


@bl.function
def judge(s: bl.State, seed: int) -> list[str]:
    """A long essay judged on five points at once, then a summary."""
    s += f"Essay: {words(400, seed)}\n"
    with s.fork(5) as points:
        for point, name in zip(points, ("style", "facts", "depth", "logic", "tone"), strict=True):
            point += f"Judge the {name}:" + fixed("judgement", 32)
            point += "\nScore (1-9): " + bl.gen("score", regex="[1-9]", temperature=0.0)
    s += f"Scores: {', '.join(s['score'])}\nSummary:" + fixed("summary", 32)
    return s["score"] + [s["summary"]]


@bl.function
def extraction(s: bl.State, seed: int) -> str:
    """A record in JSON out of a paragraph; much of it is forced by the pattern."""
    s += f"Text: {words(150, seed)}\nRecord: "
    s += bl.gen("record", regex=JSON_RECORD, max_tokens=120, temperature=0.0)
    return s["record"]


@bl.function
def chat(s: bl.State, seed: int) -> str:
    """Four turns; each finds all earlier ones in the cache."""
    s += bl.system("You are a helpful assistant.")
    for turn in range(4):
        s += bl.user(words(40, 10 * seed + turn))
        s += bl.assistant(fixed(f"answer_{turn}", 48))
    return s["answer_3"]


LABELS = (" nature", " travel", " work", " home")


@cache
def _labelled_examples() -> str:
    return "".join(
        f"Text: {words(12, 800 + i)}\nLabel:{LABELS[i % len(LABELS)]}\n\n" for i in range(20)
    )


@bl.function
def classification(s: bl.State, seed: int) -> str:
    """Twenty labelled examples that all programs share, then one choice of four."""
    s += _labelled_examples()
    s += f"Text: {words(12, seed)}\nLabel:"
    s += bl.select("label", list(LABELS))
    return s["label"]


@bl.function
def multi_chain(s: bl.State, seed: int) -> str:
    """Five chains of thought at once, then one answer that reads them all."""
    s += f"Question: {words(40, seed)}?\n"
    with s.fork(5) as chains:
        for chain, word in zip(chains, ORDINALS, strict=True):
            chain += f"{word} thought:" + fixed("chain", 64)
    s += "\n".join(s["chain"]) + "\nAnswer:" + fixed("answer", 32)
    return s["answer"]


PLAIN_WORDS, PLAIN_TOKENS = 100, 64


@bl.function
def plain(s: bl.State, seed: int) -> str:
    """One prompt and one answer: what a program costs beside the same request without one."""
    s += words(PLAIN_WORDS, seed) + fixed("answer", PLAIN_TOKENS)
    return s["answer"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A program and the tokens it generates: one after another on its longest path, and in all.

    `total` is 0 where the model decides how many.
    """

    name: str
    program: Callable[..., object]
    path: int
    total: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tree_of_thought", tree_of_thought, 120, 392),
        Shape("react", react, 136, 136),
        Shape("judge", judge, 65, 197),
        Shape("extraction", extraction, 0, 0),
        Shape("chat", chat, 192, 192),
        Shape("classification", classification, 0, 0),
        Shape("multi_chain", multi_chain, 96, 352),
        Shape("plain", plain, PLAIN_TOKENS, PLAIN_TOKENS),
    )
}
