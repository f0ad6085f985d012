"""03 fork and join: branches share every token computed so far.

`fork` copies nothing: three branches continue one prefix at the same time, and `join` brings their
variables back to the parent as lists.
"""

import branchline as bl

ANGLES = ("sleep", "food", "exercise")


@bl.function
def advice(s: bl.State, who: str) -> str:
    """Collect one tip for each angle in parallel, then sum up."""
    s += bl.system("You give short, practical advice.")
    s += bl.user(f"Help {who} to stay healthy. Give one tip at a time.")
    with s.fork(len(ANGLES)) as branches:
        for branch, angle in zip(branches, ANGLES, strict=True):
            branch += bl.assistant(
                f"A tip about {angle}: "
                + bl.gen("tip", max_tokens=32, stop=["\n"], temperature=0.0)
            )
    tips = "\n".join(f"- {tip.strip()}" for tip in s["tip"])
    s += bl.user(f"These are your tips:\n{tips}\nSay the most important one again.")
    s += bl.assistant(bl.gen("summary", max_tokens=40, temperature=0.0))
    return s["summary"]


def main() -> list[bl.State]:
    """Print the tips of all branches and the summary."""
    state = advice.run(who="a student")
    for angle, tip in zip(ANGLES, state["tip"], strict=True):
        print(f"{angle}: {tip.strip()}")
    print("summary:", state["summary"])
    return [state]


if __name__ == "__main__":
    main()
