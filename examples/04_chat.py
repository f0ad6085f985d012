"""04 chat: several turns in one program.

A finished turn is frozen: its tokens stay as they are, so turn three computes only what is new and
finds all earlier turns in the cache.
"""

import branchline as bl

QUESTIONS = (
    "What is the capital of France?",
    "Name one famous building there.",
    "In which century was it built?",
)


@bl.function(temperature=0.0)
def chat(s: bl.State, questions: tuple[str, ...] = QUESTIONS) -> list[str]:
    """Ask the questions one after another."""
    s += bl.system("Answer in one short sentence.")
    for number, question in enumerate(questions):
        with s.user():
            s += question
        with s.assistant():
            s += bl.gen(f"answer_{number}", max_tokens=32)
    return [s[f"answer_{number}"] for number in range(len(questions))]


def main() -> list[bl.State]:
    """Print the conversation and what each turn took from the cache."""
    state = chat.run()
    for number, question in enumerate(QUESTIONS):
        meta = state.meta(f"answer_{number}")
        print(f"> {question}\n{state[f'answer_{number}']}")
        print(f"  ({meta.cached_tokens} of {meta.prompt_tokens} prompt tokens from the cache)")
    return [state]


if __name__ == "__main__":
    main()
