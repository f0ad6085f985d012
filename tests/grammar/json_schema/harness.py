"""Asks a compiled schema whether it takes a text, byte by byte, and what an independent says."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import llguidance
import numpy as np
from jsonschema.validators import validator_for

from branchline.runtime.grammar.json_schema.compiler import compile_schema
from branchline.runtime.grammar.json_schema.lark import SPACED, Layout

LIMITS = llguidance.LLParserLimits(verbose_errors=False)
ANY_ORDER = Layout(any_order=True)
IN_ORDER = Layout(any_order=False)


class _Bytes:
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@cache
def tokenizer() -> llguidance.LLTokenizer:
    """A token for each byte."""
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=256)


class Checker:
    """One schema."""

    def __init__(self, schema: object, layout: Layout = SPACED) -> None:
        self.grammar = compile_schema(json.dumps(schema), layout=layout)
        engine_grammar = llguidance.LLMatcher.grammar_from_lark(self.grammar)
        self._start = llguidance.LLMatcher(tokenizer(), engine_grammar, log_level=0, limits=LIMITS)
        assert not self._start.is_error(), (schema, self._start.get_error()[:500])

    def takes_text(self, text: str) -> bool:
        """Whether a text is accepted, and complete."""
        matcher = self._start.deep_copy()
        data = text.encode()
        taken = matcher.try_consume_tokens(list(data))
        assert not matcher.is_error(), matcher.get_error()[:300]
        return bool(taken == len(data) and matcher.is_accepting())

    def takes(self, value: object) -> bool:
        """Whether a value is accepted as `json.dumps` writes it, with and without escapes."""
        plain = self.takes_text(json.dumps(value, ensure_ascii=False))
        assert plain == self.takes_text(json.dumps(value)), value
        return plain

    def takes_reordered(self, value: object) -> bool:
        """Whether a value is accepted in some order of its properties."""
        return any(self.takes(one) for one in itertools.islice(orders(value), 300))

    def walk(self, seed: int, most: int = 400) -> str | None:
        """A text found by random steps through the masks; None where it did not end in time."""
        choose = random.Random(seed)
        matcher = self._start.deep_copy()
        out: list[int] = []
        while len(out) < most:
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:257])
            assert len(allowed), bytes(out)
            closing = [i for i in allowed if i in (*b'"}]0', 256)]
            pool = closing if closing and choose.random() < 0.3 + len(out) / most else allowed
            token = int(choose.choice(list(pool)))
            if token == 256:
                assert matcher.is_accepting(), f"a dead end: {bytes(out)!r}"
                return bytes(out).decode()
            assert matcher.try_consume_tokens([token]) == 1
            out.append(token)
            if matcher.is_stopped() and matcher.is_accepting():
                return bytes(out).decode()
        return None


def orders(value: object) -> Iterator[object]:
    """A value with its properties in every order."""
    if isinstance(value, list):
        for items in itertools.product(*map(orders, value)):
            yield list(items)
    elif isinstance(value, dict):
        for names in itertools.permutations(value):
            for items in itertools.product(*(orders(value[name]) for name in names)):
                yield dict(zip(names, items, strict=True))
    else:
        yield value


def has_twice(text: str) -> bool:
    """Whether a name occurs twice in one object of a JSON text."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({name for name, _ in pairs}) < len(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


def valid(schema: Any, value: object) -> bool:
    """What the independent validator says, with formats."""
    cls = validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(cls(schema, format_checker=cls.FORMAT_CHECKER).is_valid(value))
