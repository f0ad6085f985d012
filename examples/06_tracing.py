"""06 tracing: see the request graph before and after a run.

`trace` runs the function with placeholders: no model is needed. The graph of a run is the same one
with times, tokens and cache hits. `to_html` writes one page that needs nothing else.
"""

import tempfile
from pathlib import Path

import branchline as bl


@bl.function(temperature=0.0)
def debate(s: bl.State, claim: str) -> str:
    """Two views in parallel, then a verdict."""
    s += f"Claim: {claim}\n"
    with s.fork(2) as views:
        for view, side in zip(views, ("For", "Against"), strict=True):
            view += f"{side}: " + bl.gen("view", max_tokens=24, stop="\n")
    s += f"For: {s['view'][0]}\nAgainst: {s['view'][1]}\nThe claim is"
    s += bl.select("verdict", [" true", " false", " unclear"])
    return s["verdict"].strip()


def main() -> list[bl.State]:
    """Print the graph as Mermaid text, run it, and write the page of the run."""
    graph = debate.trace(claim="Tea is better than coffee.")
    print(graph.to_mermaid())
    state = debate.run(claim="Tea is better than coffee.")
    page = Path(tempfile.gettempdir()) / "branchline-debate.html"
    state.graph.to_html(page)
    print(f"verdict: {state.result}; the run is drawn in {page}")
    return [state]


if __name__ == "__main__":
    main()
