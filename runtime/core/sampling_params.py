"""One request's choices. Frozen; validated once, at the edge; crosses sockets as msgpack."""

# size: SamplingParams: the choices are flat, since that is how every client names them.

from __future__ import annotations

from typing import Literal

import msgspec

from branchline.runtime.core.section import Section
from branchline.runtime.errors import InvalidRequest

ConstraintKind = Literal[
    "regex", "choices", "lark", "ebnf", "json_schema", "structural_tag", "text"
]
Whitespace = Literal["fixed", "compact", "flexible"]

MAX_N = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 50
MOST = 2**31 - 1
"""Of numbers that stand in tables of the device."""
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What fits into 64 bits, with a sign or without: what a message can hold."""
SEED_RULE = f"None or between {LEAST_SEED} and {MOST_SEED}"


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an output must match, before any backend has compiled it.

    Attributes:
        kind: how `text` is read; "text" = any text, for the sake of `prefix`.
        text: a pattern, a grammar, or a JSON document (an array of strings for "choices").
        whitespace: where JSON may hold some: "fixed" = as `json.dumps` writes it, "compact" = none,
            "flexible" = a bounded run between any two tokens. Other kinds of constraint spell out
            their own.
        prefix: text that the output begins with, before what must match; the first token begins
            with all of it, unless the text that follows is forced.
    """

    kind: ConstraintKind
    text: str
    whitespace: Whitespace = "fixed"
    prefix: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to continue one sequence.

    Attributes:
        temperature: 0 is greedy; logits are divided by it otherwise.
        top_p, top_k, min_p: truncations, in the order top_k, top_p, min_p; top_k -1 = off.
        max_tokens: new tokens at most; None = as many as the context holds.
        min_tokens: end-of-sequence and stop ids are masked before this many tokens.
        stop: strings that end the output (not part of it).
        stop_token_ids: ids that end the output, beside the model's own end ids.
        stop_regex: pattern whose first match ends the output (not part of it).
        keep_stop: what `stop` or `stop_regex` found is part of the output after all.
        seed: same seed, same tokens, whatever the batch; of 64 bits at most; None = drawn by the
            engine and reported.
        n: outputs wanted for the same prompt.
        logprobs: None = none; k >= 0 = chosen token and k best alternatives.
        prompt_logprobs: the same for the prompt's tokens (turns prefix reuse off for the request).
        logit_bias: token id -> added to its logit.
        constraint: what the output must match.
        section: free text that the output begins with (a model's reasoning); constraint, `stop` and
            `stop_regex` hold behind it.
        skip_special_tokens: leave the text of special tokens out of the output's.
        speculative: False = nobody guesses ahead for this sequence; None and True = as the engine
            is set. It changes no output.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_tokens: int | None = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: str | None = None
    keep_stop: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    constraint: Constraint | None = None
    section: Section | None = None
    skip_special_tokens: bool = True
    speculative: bool | None = None

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """True when logits depend on tokens already there."""
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def validate(self) -> SamplingParams:
        """Return self; raise `InvalidRequest` naming the first value that is out of range."""
        for name, ok, rule in (
            ("temperature", 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k == -1 or 1 <= self.top_k <= MOST, f"-1 (off) or 1 to {MOST}"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            (
                "max_tokens",
                self.max_tokens is None or 1 <= self.max_tokens < 2**63,
                "1 to 2**63 - 1",
            ),
            ("min_tokens", 0 <= self.min_tokens <= MOST, f"0 to {MOST}"),
            ("frequency_penalty", abs(self.frequency_penalty) <= 2.0, "between -2 and 2"),
            ("presence_penalty", abs(self.presence_penalty) <= 2.0, "between -2 and 2"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 10.0, "0.01 to 10"),
            ("n", 1 <= self.n <= MAX_N, f"between 1 and {MAX_N}"),
            ("seed", seed_fits(self.seed), SEED_RULE),
            ("logprobs", _in_range(self.logprobs), f"None or between 0 and {MAX_LOGPROBS}"),
            (
                "prompt_logprobs",
                _in_range(self.prompt_logprobs),
                f"None or between 0 and {MAX_LOGPROBS}",
            ),
            (
                "stop",
                len(self.stop) <= MAX_STOPS
                and all(0 < len(item) <= MAX_STOP_CHARS for item in self.stop),
                f"at most {MAX_STOPS} non-empty strings of at most {MAX_STOP_CHARS} characters",
            ),
        ):
            if not ok:
                raise InvalidRequest(
                    f"{name} is out of range", value=getattr(self, name), hint=f"Use {rule}."
                )
        if self.speculative not in (None, True, False):
            raise InvalidRequest(
                "speculative is not a choice",
                value=self.speculative,
                hint="Who guesses is a setting of the engine; a call can only say False.",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                "min_tokens is larger than max_tokens",
                value=f"{self.min_tokens} > {self.max_tokens}",
                hint="Lower min_tokens or raise max_tokens.",
            )
        return self


def seed_fits(seed: int | None) -> bool:
    """Whether every backend can take it."""
    return seed is None or LEAST_SEED <= seed <= MOST_SEED


def _in_range(value: int | None) -> bool:
    return value is None or 0 <= value <= MAX_LOGPROBS
