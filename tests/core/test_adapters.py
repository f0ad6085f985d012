"""Names of adapters, and namespaces that keep their versions apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.core.adapters import (
    AdapterFiles,
    adapter_namespace,
    check_adapter_name,
    check_adapter_source,
)
from branchline.runtime.errors import InvalidRequest


def test_no_two_versions_share_a_namespace() -> None:
    spaces = ["", "a", "@", "@@", "@sql@1@", "sql", "@@a", "a@1@b", "1@"]
    names = ["", "sql", "sql:1", "a", "a/b"]
    keys = list(itertools.product(spaces, names, (1, 2, 11)))
    found: dict[str, tuple[str, str, int]] = {}
    for space, name, version in keys:
        key = (space, name, version if name else 0)
        assert found.setdefault(adapter_namespace(space, name, version), key) == key


def test_the_base_model_keeps_its_namespace() -> None:
    assert adapter_namespace("tenant/salt", "", 0) == "tenant/salt"


@pytest.mark.parametrize("name", ["sql", "org/name:v1.2", "A_b-9", "0"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert check_adapter_name(name) == name


@pytest.mark.parametrize("name", ["", "@a", "a@1", "a b", "../x", ".", "é", "x" * 129, "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be called so"):
        check_adapter_name(name)


def test_a_source_is_a_path_a_name_or_files() -> None:
    files = AdapterFiles(config=b"", weights=b"")
    assert check_adapter_source(files) is files
    assert check_adapter_source("sql") == "sql"
    assert check_adapter_source(Path("a/b")) == "a/b"


@pytest.mark.parametrize("wrong", [None, 3, b"sql", {"sql": "a"}])
def test_what_is_no_source_or_name_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot be loaded from this"):
        check_adapter_source(wrong)
    with pytest.raises(InvalidRequest, match="cannot be called so"):
        check_adapter_name(wrong)
