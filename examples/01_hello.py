"""01 hello: one question, one answer.

A program is a function whose first parameter is the state. `s += …` appends; `gen` asks the model.
Roles are rendered by the model's own chat template.
"""

import branchline as bl


@bl.function
def hello(s: bl.State, name: str = "Ada") -> str:
    """Greet somebody in one sentence."""
    s += bl.system("You are a friendly assistant.")
    s += bl.user(f"Write one short sentence that welcomes {name} to the library.")
    s += bl.assistant(bl.gen("greeting", max_tokens=40, temperature=0.0))
    return s["greeting"]


def main() -> list[bl.State]:
    """Run the program and print what it says."""
    state = hello.run(name="Ada")
    print(state["greeting"])
    return [state]


if __name__ == "__main__":
    main()
