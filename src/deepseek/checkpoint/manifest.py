"""The list of what a checkpoint holds, with sizes and hashes: what does not match is not loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from deepseek.checkpoint.durable_file import Fingerprint, fingerprint, write_durably
from deepseek.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 26  # each rank adds 300 to 450 bytes
_OLDER = "use an older checkpoint"


@dataclass(frozen=True)
class Manifest:
    """A verified list: the step, and the names of the files."""

    step: int
    files: tuple[str, ...]


def write_manifest(folder: Path, step: int, files: Mapping[str, Fingerprint]) -> None:
    """Write `manifest.json` for the files of `folder`.

    Raises:
        OSError: it could not be written.
    """
    listed = {name: files[name]._asdict() for name in sorted(files)}
    body = {"format_version": FORMAT_VERSION, "step": step, "files": listed}
    write_durably(folder / MANIFEST, [_render(body)])


def _render(body: dict) -> bytes:
    """Return the one text of `body`: a manifest that differs in any byte is damaged."""
    digest = xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "xxh3_128": digest}, indent=1).encode()


def verify(folder: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: the manifest is missing, damaged or from a newer version, or a file does
            not match it or cannot be read.
    """
    manifest = _read(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            _verify_file(path, name, expected)
        except OSError as error:  # a broken disk, or a file that another user may read
            raise CheckpointError(f"{path} cannot be read: {error}", fix=_OLDER) from error
    return Manifest(manifest["step"], tuple(manifest["files"]))


def _verify_file(path: Path, name: str, expected: Mapping) -> None:
    if Path(name).name != name or not path.is_file():
        raise CheckpointError(f"{path} is missing", fix=_OLDER)
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(
            f"{path} has {size} bytes, its manifest says {expected['bytes']}", fix=_OLDER
        )
    if fingerprint(path).xxh3_128 != expected["xxh3_128"]:
        raise CheckpointError(f"{path} does not match the hash in its manifest", fix=_OLDER)


def read_manifest(folder: Path) -> Manifest:
    """Return the list of a checkpoint that has been verified.

    Raises:
        CheckpointError: the manifest is missing, damaged or from a newer version.
    """
    manifest = _read(folder)
    return Manifest(manifest["step"], tuple(manifest["files"]))


def _read(folder: Path) -> dict:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path} is damaged: it is larger than any manifest", fix=_OLDER)
        content = path.read_bytes()
        manifest = json.loads(content)
        version = manifest["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has format_version={version}, this library reads up to {FORMAT_VERSION}",
                fix="pip install --upgrade deepseek-framework",
            )
        del manifest["xxh3_128"]
        is_intact = _render(manifest) == content
        is_complete = bool(manifest["files"]) and all(
            {"bytes", "xxh3_128"} <= entry.keys() for entry in manifest["files"].values()
        )
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: the save did not finish", fix=_OLDER
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", fix=_OLDER) from error
    if not is_intact or not is_complete:
        raise CheckpointError(f"{path} is damaged: it does not match its own hash", fix=_OLDER)
    return manifest
