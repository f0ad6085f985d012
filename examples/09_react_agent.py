"""09 a ReAct agent: every call is valid for its tool; what a tool raises, the model gets to see."""

import ast
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import branchline as bl

OPS: dict[type, Any] = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__}


@bl.tool
def calculate(expression: Annotated[str, bl.regex("[0-9][0-9 +*()-]{0,30}")]) -> int:
    """Value of an expression such as 3 * (4 + 5)."""
    return value(ast.parse(expression, mode="eval").body)


def value(node: Any) -> int:
    inner = isinstance(node, ast.BinOp)
    return OPS[type(node.op)](value(node.left), value(node.right)) if inner else int(node.value)


@bl.tool
def query(sql: Annotated[str, bl.regex("SELECT [a-z0-9 ,*()=<>']{1,50}")]) -> list[Any]:
    """Rows of a SELECT over the table city(name, people)."""
    table = "WITH city(name, people) AS (VALUES ('rome', 2800000)) "
    with closing(sqlite3.connect(":memory:")) as db:
        return db.execute(table + sql).fetchmany(10)


@bl.tool
def find_files(word: Annotated[str, bl.regex("[a-z_]{1,16}")]) -> list[str]:
    """Names of the example files that contain a word."""
    return [p.name for p in Path(__file__).parent.glob("0*.py") if word in p.read_text("utf-8")]


@bl.function(temperature=0.0, max_tokens=96)
def agent(s: bl.State, question: str, first: bl.Tool) -> None:
    s += bl.system("Use a tool, then answer in one sentence.") + bl.user(question)
    tools = [calculate, query, find_files]
    for choice in (first, "auto", "auto"):
        s += bl.assistant(bl.call("step", tools, choice=choice, parallel=False, append=True))
        if not s["step"][-1].calls:
            break
        s += bl.tool_result(s["step"][-1].calls[0])


def main() -> list[bl.State]:
    tasks = {"What is 17 * 23?": calculate, "People in rome?": query, "Uses fork?": find_files}
    states = [agent.run(question, first) for question, first in tasks.items()]
    for turn in [turn for state in states for turn in state.messages()[1:]]:
        print(f"{turn['role']:>9}: {turn['content']}")
    return states


if __name__ == "__main__":
    main()
