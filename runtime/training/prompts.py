"""Makes training prompts: many different ones from the parts in prompt_parts.json, by seed.

Invariant: the same seed gives the same prompts, none twice, and a larger count begins with those
of a smaller one. None has a topic of the held-out prompts (assets/speculative/heldout.jsonl).
Knows nothing of models, templates or tokens.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from branchline.runtime.errors import InvalidRequest

TASKS: tuple[str, ...] = ("chat", "code", "summarise", "json", "math")
SHARES: tuple[int, ...] = (34, 20, 18, 16, 12)
"""Percent of the prompts of each task."""


class Prompt(NamedTuple):
    """What a user writes.

    Attributes:
        task: one of `TASKS`.
        text: the message.
    """

    task: str
    text: str


class Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Forms with names in braces, and what may stand for each name.

    Attributes:
        topics, code, languages: what people ask about, for, and in.
        chat, styles: questions about a topic, and what may be added to one.
        code_forms: questions for a program that does one of `code`.
        summarise: tasks about a {text}.
        texts: kinds of text, each a list of sentences, each a list of ways to say it.
        json_records: (keys, sentence that has their values).
        json_forms, json_free: tasks about such a record, and without one.
        math: questions with numbers.
        follow_ups: what a user may say to an answer.
        words: first names, cities, goods and the like.
    """

    topics: tuple[str, ...]
    chat: tuple[str, ...]
    styles: tuple[str, ...]
    code: tuple[str, ...]
    code_forms: tuple[str, ...]
    languages: tuple[str, ...]
    summarise: tuple[str, ...]
    texts: tuple[tuple[tuple[str, ...], ...], ...]
    json_records: tuple[tuple[str, str], ...]
    json_forms: tuple[str, ...]
    json_free: tuple[str, ...]
    math: tuple[str, ...]
    follow_ups: tuple[str, ...]
    words: dict[str, tuple[str, ...]]


@functools.cache
def parts() -> Parts:
    """The parts that ship with the package."""
    path = Path(__file__).with_name("prompt_parts.json")
    return msgspec.json.decode(path.read_bytes(), type=Parts)


def endless_prompts(seed: int = 0) -> Iterator[Prompt]:
    """Different prompts without end."""
    chooser = random.Random(seed)
    seen: set[str] = set()
    while True:
        task = chooser.choices(TASKS, SHARES)[0]
        text = _MAKERS[task](chooser)
        if text not in seen:
            seen.add(text)
            yield Prompt(task, text)


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: JSON lines with "text" and maybe "task".

    Raises:
        InvalidRequest: no such file, or a line that is not such an object; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidRequest(
            f"the prompts cannot be read: {error.strerror}",
            value=str(path),
            hint='Give a file of JSON lines such as {"task": "chat", "text": "Hello"}.',
        ) from error
    return [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_line(path: Path, number: int, line: str) -> Prompt:
    try:
        item = json.loads(line)
        text, task = item["text"], item.get("task", "chat")
        good = isinstance(text, str) and text.strip() and isinstance(task, str)
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise InvalidRequest(
            f"line {number} of {path} is not a prompt",
            value=line[:80],
            hint='Each line is an object such as {"task": "chat", "text": "Hello"}.',
        )
    return Prompt(task, text)


def _chat(chooser: random.Random) -> str:
    return _filled(chooser, chooser.choice(parts().chat)) + chooser.choice(parts().styles)


def _code(chooser: random.Random) -> str:
    return _filled(chooser, chooser.choice(parts().code_forms))


def _summarise(chooser: random.Random) -> str:
    text = _text(chooser)
    if chooser.random() < 0.3:
        text += "\n\n" + _text(chooser)
    return chooser.choice(parts().summarise).format(text=text)


def _text(chooser: random.Random) -> str:
    """One paragraph. Its words are chosen once, so that names and numbers agree."""
    words = _words(chooser)
    kind = chooser.choice(parts().texts)
    return " ".join(chooser.choice(ways).format(**words) for ways in kind)


def _json(chooser: random.Random) -> str:
    if chooser.random() < 0.3:
        return _filled(chooser, chooser.choice(parts().json_free))
    fields, _ = chosen = chooser.choice(parts().json_records)
    text = _filled(chooser, chosen[1])
    return chooser.choice(parts().json_forms).format(fields=fields, text=text)


def _math(chooser: random.Random) -> str:
    return _filled(chooser, chooser.choice(parts().math))


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "chat": _chat,
    "code": _code,
    "summarise": _summarise,
    "json": _json,
    "math": _math,
}


def _filled(chooser: random.Random, form: str) -> str:
    return form.format(**_words(chooser))


def _words(chooser: random.Random) -> dict[str, str | int]:
    """A value for every name that a form may have."""
    pick, number, words = chooser.choice, chooser.randint, parts().words
    topic, other = chooser.sample(parts().topics, 2)
    first, first2 = chooser.sample(words["first_names"], 2)
    last, last2 = chooser.sample(words["last_names"], 2)
    city, city2 = chooser.sample(words["cities"], 2)
    day, day2 = chooser.sample(words["days"], 2)
    step, start = number(2, 12), number(2, 30)
    good = pick(words["goods"])
    return {
        "topic": topic,
        "other": other,
        "task": pick(parts().code),
        "language": pick(parts().languages),
        "first": first,
        "first2": first2,
        "last": last,
        "last2": last2,
        "name": f"{first} {last}",
        "city": city,
        "city2": city2,
        "day": day,
        "day2": day2,
        "month": pick(words["months"]),
        "job": pick(words["jobs"]),
        "good": good,
        "goods": f"{good}s",
        "place": pick(words["places"]),
        "colour": pick(words["colours"]),
        "size": pick(words["sizes"]),
        "age": number(18, 79),
        "age2": number(10, 28),
        "hour": number(7, 19),
        "digit": number(0, 2),
        "small": number(3, 24),
        "percent": number(6, 91),
        "many": f"{number(1, 99)},{number(0, 9)}00",
        "money": f"{number(1, 48)}.{number(1, 9)} million",
        "a": number(13, 400),
        "b": number(60, 999),
        "c": start,
        "c2": start + step,
        "c3": start + 2 * step,
        "c4": start + 3 * step,
        "d": number(2, 15),
        "h": number(5, 60) * 10,
        "p": number(1, 19) * 5,
    }
