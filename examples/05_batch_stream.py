"""05 batch and stream: many programs at once, and one as it is written.

`run_batch` keeps the order of its items, starts the prefix that all of them share once, and with
`on_error="return"` puts the exception of a failed item in its place. `stream` iterates events.
"""

import branchline as bl

WORDS = ("water", "house", "bread", "night", "friend", "window")


@bl.function(temperature=0.0)
def translate(s: bl.State, word: str) -> str:
    """One English word in French, after worked examples."""
    s += "English: dog\nFrench: chien\n\nEnglish: sun\nFrench: soleil\n\nEnglish: tree\n"
    s += "French: arbre\n\nEnglish: milk\nFrench: lait\n\n"
    s += f"English: {word}\nFrench:" + bl.gen("french", max_tokens=8, stop="\n")
    return s["french"].strip()


@bl.function
def story(s: bl.State, about: str) -> None:
    """A few sentences."""
    s += bl.user(f"Tell me a very short story about {about}.")
    s += bl.assistant(bl.gen("story", max_tokens=48, temperature=0.0))


def main() -> list[bl.State]:
    """Translate the words together, then stream a story."""
    states = translate.run_batch([{"word": word} for word in WORDS], on_error="return")
    for word, state in zip(WORDS, states, strict=True):
        print(f"{word:<8}{state.result if isinstance(state, bl.State) else state}")
    for event in story.stream(about="a lighthouse"):
        if isinstance(event, bl.TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, bl.Done):
            states.append(event.state)
    print()
    return [state for state in states if isinstance(state, bl.State)]


if __name__ == "__main__":
    main()
