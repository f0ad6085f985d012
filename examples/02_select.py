"""02 select: choose by the model's own probabilities, and write under a constraint.

`select` scores every choice exactly, all of them in one forward over the shared prefix. A `gen`
with a type or a regex can only write what matches; the value that comes back has that type.
"""

from typing import Literal

import branchline as bl


@bl.function(temperature=0.0)
def describe(s: bl.State, thing: str) -> str:
    """Sort a thing, then fill in two typed fields."""
    s += "melon: fruit, size: medium, danger: 1/10\nhorse: animal, size: large, danger: 4/10\n"
    s += "spoon: object, size: small, danger: 1/10\nwolf: animal, size: large, danger: 8/10\n"
    s += f"{thing}:" + bl.select("kind", [" animal", " fruit", " object"])
    s += ", size: " + bl.gen("size", Literal["small", "medium", "large"])
    s += ", danger:" + bl.gen("danger", regex=" ([1-9]|10)/10")
    return s["kind"].strip()


def main() -> list[bl.State]:
    """Print how sure the model is of each choice, and the typed values."""
    state = describe.run(thing="tiger")
    for choice in state.meta("kind").choices:
        print(f"{choice.text.strip():<8}{choice.probability:6.1%}")
    print(f"size: {state['size']}, danger:{state['danger']}")
    return [state]


if __name__ == "__main__":
    main()
