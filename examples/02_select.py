"""02 select: choose by the model's own probabilities, and write under a constraint.

`select` scores every choice exactly, all of them in one forward over the shared prefix. A `gen`
with a type or a regex can only write what matches; the value that comes back has that type.
"""

import branchline as bl

REVIEW = "The soup was cold and the waiter forgot us twice."


@bl.function
def judge(s: bl.State, review: str) -> str:
    """Classify a review, then describe it in two typed fields."""
    s += "Review: The best cake in town!\nOpinion: positive\n\n"
    s += "Review: We waited an hour for dry chicken.\nOpinion: negative\n\n"
    s += f"Review: {review}\nOpinion:"
    s += bl.select("opinion", [" positive", " negative", " mixed"])
    s += "\nStars (1 to 5): " + bl.gen("stars", regex="[1-5]", temperature=0.0)
    s += "\nVisited on: 2026-" + bl.gen("day", regex=r"(0[1-9]|1[0-2])-[0-2][1-9]", temperature=0.0)
    return s["opinion"].strip()


def main() -> list[bl.State]:
    """Print the opinion and how sure the model is."""
    state = judge.run(review=REVIEW)
    for choice in state.meta("opinion").choices:
        print(f"{choice.text.strip():<10}{choice.probability:6.1%}")
    print("stars:", state["stars"], " day:", state["day"])
    return [state]


if __name__ == "__main__":
    main()
