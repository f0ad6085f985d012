"""03 fork and join: branches share every token computed so far.

`fork` copies nothing: three branches continue one prefix at the same time, and `join` brings their
variables back to the parent as lists.
"""

import branchline as bl

TOPICS = ("sleep", "food", "exercise")


@bl.function(temperature=0.0)
def advice(s: bl.State, who: str) -> str:
    """One tip for each topic in parallel, then a summary that has read them all."""
    s += bl.system("You give short, practical advice.")
    s += bl.user(f"How can {who} stay healthy? Give tips about sleep, food and exercise.")
    with s.fork(len(TOPICS)) as branches:
        for branch, topic in zip(branches, TOPICS, strict=True):
            branch += bl.assistant(
                f"My tip about {topic} is to" + bl.gen("tip", max_tokens=32, stop=[".", "\n"])
            )
    s += bl.user(f"So I should{', and'.join(s['tip'])}. Sum up in one sentence.")
    s += bl.assistant("Remember to" + bl.gen("summary", max_tokens=32, stop=[".", "\n"]))
    return s["summary"]


def main() -> list[bl.State]:
    """Print the tips of all branches and the summary."""
    state = advice.run(who="a student")
    for topic, tip in zip(TOPICS, state["tip"], strict=True):
        print(f"{topic:<10}{tip.strip()}")
    print(f"{'summary':<10}{state['summary'].strip()}")
    return [state]


if __name__ == "__main__":
    main()
