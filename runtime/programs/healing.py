"""Token healing: the seam between prompt text and an output is tokenized as one.

A prompt that ends in "is " has spent the space that the model would have written as part of its
next token (" Paris"); what begins behind the space then has next to none of the model's
probability. So the prompt's last token is taken back, and the first token of the output is one
that begins with its text (`Constraint.prefix`), in the model's own proportions. Law: the lane's
text is the same as without healing, and the value does not contain the text taken back; only the
ids at the seam change. Done for constrained outputs outside of chat turns, and where it is asked
for; only to a token of text that the lane itself appended. Never before a section of reasoning,
which begins with markup.
(Token healing: Lundberg, "The Art of Prompt Design", 2023.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import TextTokenizer
    from branchline.runtime.programs.lane import Lane


class Seam(msgspec.Struct, frozen=True):
    """What was taken back.

    Attributes:
        token_id: the prompt's last token.
        text: its text, which the output begins with.
        sampling: the node's parameters, with `text` before what the constraint matches.
    """

    token_id: int
    text: str
    sampling: SamplingParams


def find_seam(
    lane: Lane, sampling: SamplingParams, tokenizer: TextTokenizer, heal: bool | None = None
) -> Seam | None:
    """The seam to heal before a generate node, if there is one.

    Args:
        heal: see `Generate.heal`.
    """
    if heal is None:
        heal = sampling.constraint is not None and lane.role is None
    own = len(lane.ids) > max(1, lane.fork_point.ids)
    if not (heal and lane.tail == "literal" and own) or sampling.section is not None:
        return None
    token_id = lane.ids[-1]
    text = tokenizer.decode([token_id], skip_special=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return None  # part of a character: it has no text of its own
    if sampling.stop_regex is not None or any(stop[0] in text for stop in sampling.stop):
        return None  # the text taken back could be mistaken for a stop
    constraint = sampling.constraint or Constraint(kind="text", text="")
    max_tokens = None if sampling.max_tokens is None else sampling.max_tokens + 1
    healed = msgspec.structs.replace(
        sampling,
        constraint=msgspec.structs.replace(constraint, prefix=text),
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens + (sampling.min_tokens > 0),
    )
    return Seam(token_id, text, healed)


def strip(result: GenerateResult, seam: Seam) -> GenerateResult:
    """The result without the text taken back. One that ended before it was written out again has
    no text of its own, and its only id is the token taken back.

    Counts are those of the lane: the token taken back belongs to the prompt.
    """
    whole = result.text.startswith(seam.text)
    ids = result.token_ids if whole else [seam.token_id]
    meta = msgspec.structs.replace(
        result.meta,
        prompt_tokens=result.meta.prompt_tokens + 1,
        output_tokens=max(0, len(ids) - 1),
    )
    return msgspec.structs.replace(
        result,
        text=result.text[len(seam.text) :] if whole else "",
        token_ids=ids,
        logprobs=result.logprobs if whole else [],
        meta=meta,
    )
