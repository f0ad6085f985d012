"""Structural tags, checked and rewritten for xgrammar. Invariant: no field is ignored.

A structural tag is JSON: free text in which certain tags begin structured parts, and ways to
compose them. What is inside a tag (a schema, a pattern, a grammar) is rewritten as a grammar by our
own readers, which refuse by name what they do not cover; what the engine would read in its own way
never reaches it. The older form (`structures` and `triggers`) becomes the newer one. Triggered tags
of which there must be at least one begin with a tag, not with free text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar import ebnf
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, check_document
from branchline.runtime.grammar.regex_tree import pattern_tree
from branchline.runtime.grammar.schema_tree import schema_rules

FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "const_string": (frozenset({"value"}), frozenset()),
    "any_text": (frozenset(), frozenset({"excludes"})),
    "json_schema": (frozenset({"json_schema"}), frozenset({"style"})),
    "grammar": (frozenset({"grammar"}), frozenset()),
    "regex": (frozenset({"pattern"}), frozenset()),
    "sequence": (frozenset({"elements"}), frozenset()),
    "or": (frozenset({"elements"}), frozenset()),
    "optional": (frozenset({"content"}), frozenset()),
    "plus": (frozenset({"content"}), frozenset()),
    "star": (frozenset({"content"}), frozenset()),
    "repeat": (frozenset({"content", "min", "max"}), frozenset()),
    "tag": (frozenset({"begin", "content", "end"}), frozenset()),
    "triggered_tags": (
        frozenset({"triggers", "tags"}),
        frozenset({"at_least_one", "stop_after_first", "excludes"}),
    ),
    "tags_with_separator": (
        frozenset({"tags", "separator"}),
        frozenset({"at_least_one", "stop_after_first"}),
    ),
}
"""Type -> (fields it must have, fields it may have). Types that name tokens are not covered."""


def engine_tag(
    text: str,
    whitespace: Whitespace = "fixed",
    limits: Limits = DEFAULT_LIMITS,
    *,
    prefix: str = "",
) -> str:
    """The structural tag as the engine is given it, behind `prefix`.

    Raises:
        InvalidRequest: malformed, or a bound is exceeded.
        UnsupportedConstraint: something in it cannot be enforced; names it and its place.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"structural_tag: not JSON ({error})", value=text, hint="Give a structural tag."
        ) from error
    check_document("structural_tag", document, limits)
    if not isinstance(document, dict):
        _malformed("a structural tag is an object", "#", document)
    if "structures" in document:
        document = {"type": "structural_tag", "format": _from_older(document)}
    if document.get("type", "structural_tag") != "structural_tag":
        _malformed("the type is not structural_tag", "#", document["type"])
    for key in document:
        if key not in ("type", "format"):
            _unsupported(key, "#")
    rewriter = _Rewriter(whitespace, limits)
    format_ = rewriter.format(document.get("format"), "#/format")
    if prefix:
        seam = {"type": "const_string", "value": prefix}
        format_ = {"type": "sequence", "elements": [seam, format_]}
    return json.dumps({"type": "structural_tag", "format": format_})


def _from_older(document: Mapping[str, Any]) -> dict[str, Any]:
    for key in document:
        if key not in ("type", "structures", "triggers"):
            _unsupported(key, "#")
    tags = []
    for index, item in enumerate(document["structures"] or []):
        path = f"#/structures/{index}"
        if not isinstance(item, dict) or set(item) != {"begin", "schema", "end"}:
            _malformed("a structure has begin, schema and end", path, item)
        content = {"type": "json_schema", "json_schema": item["schema"]}
        tags.append({"type": "tag", "begin": item["begin"], "content": content, "end": item["end"]})
    return {"type": "triggered_tags", "triggers": document.get("triggers"), "tags": tags}


def _malformed(message: str, path: str, value: Any) -> NoReturn:
    raise InvalidRequest(
        f"structural_tag: {message}, at {path}", value=value, hint="Correct the structural tag."
    )


def _unsupported(what: str, path: str) -> NoReturn:
    raise UnsupportedConstraint(
        f"structural_tag: {what} at {path} cannot be enforced",
        value=what,
        hint=f"Use formats of the types {', '.join(FIELDS)}.",
    )


class _Rewriter:
    def __init__(self, whitespace: Whitespace, limits: Limits) -> None:
        self._whitespace: Whitespace = whitespace
        self._limits = limits

    def format(self, item: Any, path: str) -> dict[str, Any]:
        """One format and all within it."""
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(kind, str):
            _malformed("a format is an object with a type", path, item)
        if kind not in FIELDS:
            _unsupported(f"type {kind}", path)
        must, may = FIELDS[kind]
        for key in item:
            if key != "type" and key not in must | may:
                _unsupported(f"field {key} of {kind}", path)
        for key in must:
            if key not in item:
                _malformed(f"{kind} needs {key}", path, item)
        rewrite: Callable[[Any, str], dict[str, Any]] = getattr(self, f"_{kind}", self._composed)
        return rewrite(item, path)

    def _grammar_of(self, rules: Mapping[str, ebnf.Node]) -> dict[str, Any]:
        return {"type": "grammar", "grammar": ebnf.write(rules)}

    def _const_string(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        return {"type": "const_string", "value": self._text(item["value"], f"{path}/value")}

    def _any_text(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        excludes = self._texts(item.get("excludes", []), f"{path}/excludes")
        return {"type": "any_text", "excludes": excludes}

    def _json_schema(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        if item.get("style", "json") != "json":
            _unsupported(f"style {item['style']}", path)
        text = json.dumps(item["json_schema"])
        with _placed(path):
            return self._grammar_of(schema_rules(text, self._whitespace, self._limits))

    def _grammar(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        text = self._text(item["grammar"], f"{path}/grammar")
        with _placed(path):
            return self._grammar_of(ebnf.read(text, self._limits))

    def _regex(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        pattern = self._text(item["pattern"], f"{path}/pattern")
        with _placed(path):
            tree = pattern_tree(pattern, self._limits)
            return self._grammar_of(ebnf.checked({"root": tree}, "regex"))

    def _tag(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        end = item["end"]
        ends = end if isinstance(end, list) else [end]
        if not ends:
            _malformed("a tag needs an end", path, item)
        return {
            "type": "tag",
            "begin": self._text(item["begin"], f"{path}/begin"),
            "content": self.format(item["content"], f"{path}/content"),
            "end": self._texts(ends, f"{path}/end"),
        }

    def _triggered_tags(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        triggers = self._texts(item["triggers"], f"{path}/triggers")
        found = self._composed(item, path)
        for index, tag in enumerate(found["tags"]):
            matching = [trigger for trigger in triggers if tag["begin"].startswith(trigger)]
            if len(matching) != 1 or not matching[0]:
                place = f"{path}/tags/{index}"
                _malformed("exactly one trigger must begin a tag's begin", place, tag["begin"])
        return found | {"triggers": triggers}

    def _composed(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": item["type"]}
        for key, value in item.items():
            place = f"{path}/{key}"
            if key in ("elements", "tags"):
                if not isinstance(value, list) or not value:
                    _malformed(f"{key} is a list of formats", place, value)
                if key == "tags":  # which they are whether or not they say so
                    value = [_as_tag(part) for part in value]
                found[key] = [self.format(part, f"{place}/{i}") for i, part in enumerate(value)]
                if key == "tags" and any(part["type"] != "tag" for part in found[key]):
                    _malformed("tags are formats of the type tag", place, value)
            elif key == "content":
                found[key] = self.format(value, place)
            elif key in ("triggers", "excludes"):
                found[key] = self._texts(value, place)
            elif key == "separator":
                found[key] = self._text(value, place)
            elif key in ("min", "max"):
                found[key] = self._count(key, value, place)
            elif key != "type":
                if not isinstance(value, bool):
                    _malformed(f"{key} is true or false", place, value)
                found[key] = value
        return found

    def _count(self, key: str, value: Any, path: str) -> int:
        least = -1 if key == "max" else 0
        if type(value) is not int or not least <= value <= self._limits.repeat:
            _malformed(f"{key} is from {least} to {self._limits.repeat}", path, value)
        return value

    def _texts(self, value: Any, path: str) -> list[str]:
        if not isinstance(value, list):
            _malformed("not a list of texts", path, value)
        return [self._text(item, f"{path}/{index}") for index, item in enumerate(value)]

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
            _malformed("not a text", path, value)
        return value


def _as_tag(part: Any) -> Any:
    return {"type": "tag", **part} if isinstance(part, dict) else part


@contextlib.contextmanager
def _placed(path: str) -> Iterator[None]:
    """Adds the place in the structural tag to what a reader of a part refuses."""
    try:
        yield
    except (InvalidRequest, UnsupportedConstraint) as error:
        error.message = f"structural_tag: {path}: {error.message}"
        error.args = (error.message,)
        raise
