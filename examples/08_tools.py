"""08 tools: the model calls Python functions.

A tool's schema is its signature, its docstring is what the model is told. The same description that
constrains the output reads it, so a call always names a tool and its arguments are instances.
"""

import datetime
from enum import Enum

import branchline as bl


class Room(Enum):
    SINGLE = "single"
    DOUBLE = "double"


@bl.tool
def price(room: Room, nights: int) -> float:
    """Price of a stay in euros.

    Args:
        nights: how many, at least 1.
    """
    if not 1 <= nights <= 28:
        raise ValueError(f"{nights} nights cannot be booked")
    return {Room.SINGLE: 80.0, Room.DOUBLE: 110.0}[room] * nights


@bl.tool
def is_free(room: Room, arrival: datetime.date) -> bool:
    """Whether a room is free from a day on."""
    return arrival.day % 2 == 0 or room is Room.DOUBLE


@bl.function(temperature=0.0)
def desk(s: bl.State, question: str) -> str:
    """Have the model call a tool, give it what the tool gave, and let it answer."""
    s += bl.user(question)
    s += bl.assistant(bl.call("step", [price, is_free], choice="required", parallel=False))
    for call in s["step"].calls:
        s += bl.tool_result(call, call.run())
    s += bl.assistant(bl.gen("answer", max_tokens=32))
    return s["answer"]


def main() -> list[bl.State]:
    """Print the call, its result, and the answer."""
    state = desk.run(question="What do 3 nights in a double room cost?")
    for call in state["step"].calls:
        print(f"{call} = {call.run()}")
    print(state.result.strip())
    return [state]


if __name__ == "__main__":
    main()
