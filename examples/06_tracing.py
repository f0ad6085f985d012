"""06 tracing: see the request graph before and after a run.

`trace` runs the function with placeholders: no model is needed. The graph of a run is the same one
with times, tokens and cache hits. `to_html` writes one page that needs nothing else.
"""

import tempfile
from pathlib import Path

import branchline as bl


@bl.function(temperature=0.0)
def debate(s: bl.State, topic: str) -> str:
    """Two views in parallel, then a verdict."""
    s += f"Notes on {topic}.\n"
    with s.fork(2) as views:
        for view, side in zip(views, ("good", "bad"), strict=True):
            view += f"One {side} thing about {topic} is that"
            view += bl.gen("view", max_tokens=24, stop=[".", "\n"])
    s += f"It is good that{s['view'][0]}. It is bad that{s['view'][1]}.\nSo {topic} is"
    s += bl.select("verdict", [" a good idea", " a bad idea", " neither good nor bad"])
    return s["verdict"].strip()


def main() -> list[bl.State]:
    """Print the graph as Mermaid text, run it, and write the page of the run."""
    graph = debate.trace(topic="homework")
    print(graph.to_mermaid())
    state = debate.run(topic="homework")
    page = Path(tempfile.gettempdir()) / "branchline-debate.html"
    state.graph.to_html(page)
    print(f"verdict: {state.result}; the run is drawn in {page}")
    return [state]


if __name__ == "__main__":
    main()
