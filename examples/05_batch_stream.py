"""05 batch and stream: many programs at once, and one as it is written.

`run_batch` keeps the order of its items, starts the prefix that all of them share once, and with
`on_error="return"` puts the exception of a failed item in its place. `stream` iterates events.
"""

import branchline as bl

COUNTRIES = ("France", "Japan", "Italy", "Norway", "Kenya", "Greece")


@bl.function(temperature=0.0)
def capital(s: bl.State, country: str) -> str:
    """The capital of a country, after worked examples that all items share."""
    s += "Country: Spain\nCapital: Madrid\n\nCountry: Egypt\nCapital: Cairo\n\n"
    s += f"Country: Peru\nCapital: Lima\n\nCountry: {country}\nCapital:"
    s += bl.gen("capital", max_tokens=8, stop="\n")
    return s["capital"].strip()


@bl.function
def story(s: bl.State, about: str) -> None:
    """A few sentences."""
    s += bl.user(f"Tell me a very short story about {about}.")
    s += bl.assistant(bl.gen("story", max_tokens=48, temperature=0.0))


def main() -> list[bl.State]:
    """Ask for all capitals together, then stream a story."""
    items = [{"country": country} for country in COUNTRIES]
    states = capital.run_batch(items, on_error="return")
    for country, state in zip(COUNTRIES, states, strict=True):
        print(f"{country:<8}{state.result if isinstance(state, bl.State) else state}")
    for event in story.stream(about="a cat and a mouse"):
        if isinstance(event, bl.TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, bl.Done):
            states.append(event.state)
    print()
    return [state for state in states if isinstance(state, bl.State)]


if __name__ == "__main__":
    main()
