"""What a server can be told: one table, three ways to say it, and no way to say it wrongly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from branchline.cli.main import build_parser
from branchline.cli.options import add_engine_flags, settings_of
from branchline.cli.server_keys import read_keys
from branchline.cli.server_settings import (
    FLAG_SECTIONS,
    LIMIT_SECTIONS,
    SERVER_SECTIONS,
    Choices,
    choices_of,
)
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.config.file import read_settings
from branchline.runtime.config.sections import all_settings
from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.keys import Access


def choose(*words: str) -> Choices:
    return choices_of(build_parser().parse_args(["serve", *words]))


def write(folder: Path, text: str) -> str:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_setting_is_a_flag_and_there_are_fewer_than_sixty() -> None:
    known = all_settings(SERVER_SECTIONS)
    assert len(known) == sum(len(all_settings([section])) for section in SERVER_SECTIONS), "unique"
    flags = all_settings(FLAG_SECTIONS)
    assert len(flags) + len(("--config", "--limit")) < 60
    assert {f"setting_{name}" for name in flags} <= set(vars(build_parser().parse_args(["serve"])))


def test_every_limit_is_set_by_its_name() -> None:
    for name, (_, item) in all_settings(LIMIT_SECTIONS).items():
        value = 7 if "int" in str(item.type) else 7.5
        choices = choose("--limit", f"{name.replace('_', '-')}={value}")
        found = {**asdict(choices.limits), **asdict(choices.program_limits)}
        assert found[name] == value, name
    assert choose("--limit", "max_n=3", "--limit", "max_tools = 5").limits.max_tools == 5


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("max_m=3", "unknown limit 'max_m'.*max_n"),
        ("max_n", "has no value.*--limit max_n=128"),
        ("max_n=many", "--limit max_n is a number.*--limit max_n=128"),
        ("max_n=0", "max_n must be above 0"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_an_error(word: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        choose("--limit", word)


def test_nothing_said_is_every_default() -> None:
    choices = choose()
    assert choices.engine == {}
    assert choices.server == ServerSection()
    assert (choices.server.host, choices.server.port) == ("127.0.0.1", 30000)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        """
        [model]
        model = "some/model"
        threads = 4
        [scheduler]
        overlap = false
        default_deadline_s = 30
        [server]
        port = 8000
        served_model_name = "a,b"
        [limits]
        max_n = 4
        """,
    )
    choices = choose("--config", config, "--threads", "2", "--port", "0")
    assert choices.engine == {
        "model": "some/model",
        "threads": 2,
        "overlap": False,
        "default_deadline_s": 30.0,
    }
    assert (choices.server.port, choices.server.served_model_name) == (0, "a,b")
    assert choices.limits.max_n == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sever]\nport = 1", "unknown table 'sever'.*Did you mean 'server'"),
        ("[server]\nprot = 1", "unknown setting of \\[server\\] 'prot'.*Did you mean 'port'"),
        ("[server]\nthreads = 1", "has no 'threads'.*below \\[model\\]"),
        ("port = 1", "'port' stands outside.*\\[server\\]"),
        ("[server]\nport = '1'", "port is not of its type.*int"),
        ("[scheduler]\noverlap = 1", "overlap is not of its type.*bool"),
        ("[server]\nport = true", "port is not of its type"),
        ("[server]\nport = 70000", "port is not a port"),
        ("[server]\nhang_timeout_s = 0", "hang_timeout_s must be above 0"),
        ("[server]\nmax_restarts = -1", "max_restarts must not be negative"),
        ("[server]\nlog_level = 'loud'", "log_level is not a choice"),
        ("[server\n", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_could(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        choose("--config", write(tmp_path, text))


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        choose("--config", "/nowhere/settings.toml")


def test_keys_come_from_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRANCHLINE_API_KEY", raising=False)
    monkeypatch.delenv("BRANCHLINE_ADMIN_KEY", raising=False)
    assert not read_keys(ServerSection()).needed
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    monkeypatch.setenv("BRANCHLINE_API_KEY", "three, four")
    monkeypatch.setenv("BRANCHLINE_ADMIN_KEY", "boss")
    keys = read_keys(ServerSection(api_key_file=str(path)))
    assert keys.needed
    for key in ("one", "two", "three", "four"):
        assert not keys.identify({"x-api-key": key}, Access.NORMAL).is_admin
    assert keys.identify({"x-api-key": "boss"}, Access.ADMIN).is_admin
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="has none"):
        read_keys(ServerSection(api_key_file=str(path)))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_keys(ServerSection(admin_key_file=str(tmp_path / "nothing")))


def test_the_server_never_listens_to_the_world_by_itself() -> None:
    defaults = {item.name: item.default for item in fields(ServerSection)}
    assert defaults["host"] == "127.0.0.1"
    assert defaults["api_key_file"] is None


@dataclass(frozen=True, kw_only=True)
class ShelfSection:
    """A section with a table."""

    books: Mapping[str, str] | None = field(default=None, metadata={"help": "what stands where"})


def shelf(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_engine_flags(parser, [ShelfSection])
    return settings_of(parser.parse_args(words), [ShelfSection])


def test_a_table_has_a_flag_for_each_entry_and_a_table_in_the_file(tmp_path: Path) -> None:
    assert shelf() == {}
    assert shelf("--book", "a=x", "--book", "b=y=z") == {"books": {"a": "x", "b": "y=z"}}
    for words, said in (
        (("--book", "a"), "a name and a value"),
        (("--book", "=x"), "a name and a value"),
        (("--book", "a="), "a name and a value"),
        (("--book", "a=x", "--book", "a=y"), "twice"),
    ):
        with pytest.raises(InvalidRequest, match=f"--book.*{said}"):
            shelf(*words)
    for text in ('[shelf]\nbooks = {a = "x"}\n', '[shelf.books]\na = "x"\n'):
        path = Path(write(tmp_path, text))
        assert read_settings(path, [ShelfSection]) == {"books": {"a": "x"}}
    for text in ('[shelf]\nbooks = "a"\n', "[shelf]\nbooks = {a = 1}\n"):
        with pytest.raises(InvalidRequest, match="books is a table of texts"):
            read_settings(Path(write(tmp_path, text)), [ShelfSection])


def test_a_path_may_stand_wherever_its_text_may() -> None:
    config = EngineConfig.from_settings(
        {
            "model": Path("a.gguf"),
            "speculative": "draft",
            "speculative_draft": Path("b"),
            "adapters": {"sql": Path("c")},
        }
    )
    assert (config.model.model, config.speculative.speculative_draft) == ("a.gguf", "b")
    assert config.lora.adapters == {"sql": "c"}


def test_adapters_are_named_one_by_one() -> None:
    chosen = choose("--adapter", "sql=/a/sql", "--adapter", "json=/a/json=v2")
    assert chosen.engine["adapters"] == {"sql": "/a/sql", "json": "/a/json=v2"}
