"""07 typed extraction: a sentence becomes an instance of your own class.

The type is the constraint: the model can only write JSON that the class reads, and the value is an
instance of it. A composition names its parts; `match` checks a text against a type without a model.
"""

import datetime
from dataclasses import dataclass
from typing import Annotated, Literal

import branchline as bl


@dataclass
class Booking:
    """What a guest wants."""

    name: Annotated[str, bl.regex("[A-Z][a-z]{1,11}")]
    room: Literal["single", "double"]
    arrival: datetime.date
    breakfast: bool


NOTE = bl.seq("Room ", bl.capture("number", int), ", ", bl.capture("view", bl.regex("sea|garden")))
EXAMPLE = '{"name": "Joe", "room": "single", "arrival": "2026-05-02", "breakfast": false}'


@bl.function(temperature=0.0)
def book(s: bl.State, wish: str) -> Booking:
    """Read a booking from a sentence, then write a note with typed parts."""
    s += "Joe wants a single room from 2 May 2026, without breakfast.\n" + EXAMPLE + "\n"
    s += wish + "\n" + bl.gen("booking", Booking, max_tokens=96) + "\n"
    s += "Room 12, garden\n" + bl.gen("note", NOTE, max_tokens=24)
    return s["booking"]


def main() -> list[bl.State]:
    """Print the instance, its parts as they come, and what a wrong text looks like."""
    wish = "Ada wants a double room from 3 June 2026, with breakfast."
    state = None
    for event in book.stream(wish=wish):
        if isinstance(event, bl.VariableReady):
            print(f"{event.name:<18}{event.value!r}")
        elif isinstance(event, bl.Done):
            state = event.state
    found = bl.match(Booking, EXAMPLE.replace("05-02", "02-30"))
    print(f"30 February: {found.status} at character {found.error_at}")
    return [state] if state is not None else []


if __name__ == "__main__":
    main()
