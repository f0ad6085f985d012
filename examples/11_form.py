"""11 form: one composition of constraints fills a whole form, and its parts come back typed.

`seq`, `|`, `optional` and `repeat` nest as the form does; each `capture` is a variable of its own:
a date, a number, a list, or None for a line that was left out.
"""

import datetime

import branchline as bl

NAME = bl.regex("[A-Z][a-z]{2,10} [A-Z][a-z]{2,12}")
ITEM = bl.seq(
    "\n- ",
    bl.capture("item", bl.choices(["tent", "sleeping bag", "stove", "boots"])),
    " x",
    bl.capture("count", bl.regex("[1-9]")),
)
FORM = bl.seq(
    "Name: ",
    bl.capture("name", NAME),
    "\nArrival: ",
    bl.capture("arrival", datetime.date) | "open",
    bl.optional(bl.seq("\nPhone: ", bl.capture("phone", bl.regex("[0-9]{3}-[0-9]{4}")))),
    "\nRented:",
    bl.seq(" nothing") | bl.capture("rented", bl.repeat(ITEM, 1, 3)),
    "\nEnd",
)
EXAMPLE = "Name: Joe Miller\nArrival: 2026-05-02\nPhone: 555-0123\nRented:\n- boots x2\nEnd"


@bl.function(temperature=0.0)
def fill(s: bl.State, note: str) -> int:
    """Turn a note into a filled form; the number of things rented."""
    s += "Joe Miller comes on 2 May 2026, phone 555-0123. He rents two boots.\n"
    s += f"{EXAMPLE}\n\n"
    s += f"{note}\n" + bl.gen("form", FORM, max_tokens=128)
    return sum(int(count) for count in s["count"])


def main() -> list[bl.State]:
    """Print the captures, and how far a wrong form gets."""
    note = "Ada Lovelace comes on 3 June 2026, phone 555-0187. She needs a stove and a tent."
    state = fill.run(note=note)
    for name in ("name", "arrival", "phone", "item", "count"):
        print(f"{name:<9}{state[name]!r}")
    print(f"rented   {state.result} in all")
    found = bl.match(FORM, EXAMPLE)
    print(f"the example: {found.status}, {found.captures['item']}")
    wrong = bl.match(FORM, EXAMPLE.replace("x2", "x0"))
    print(f"no boots at all: {wrong.status} at character {wrong.error_at}")
    return [state]


if __name__ == "__main__":
    main()
