"""The default model's tokenizer and a tiny one of each family, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import source_of, spaced_metadata


@pytest.fixture(scope="session")
def default_source(default_model: Path) -> TokenizerSource:
    source = open_checkpoint(default_model).tokenizer_source
    assert source is not None
    return source


@pytest.fixture(scope="session")
def smol(default_source: TokenizerSource) -> Tokenizer:
    return Tokenizer(default_source)


@pytest.fixture(scope="session")
def spaced() -> Tokenizer:
    return Tokenizer(source_of(spaced_metadata()))


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
