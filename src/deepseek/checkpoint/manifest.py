"""The list of what a checkpoint holds, with sizes and hashes: what does not match is not loaded."""

import json
from pathlib import Path

import xxhash

from deepseek.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
READ_BYTES = 1 << 22


def hash_file(path: Path) -> str:
    """Return the XXH3-128 of a file as hex (accidents, not attackers: 14 GB/s)."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, step: int) -> None:
    """Write `manifest.json` for the files of `folder`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh3_128": hash_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    body = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    digest = xxhash.xxh3_128(_canonical(body)).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**body, "xxh3_128": digest}, indent=1))


def _canonical(body: dict) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def verify(folder: Path) -> int:
    """Check every file of a checkpoint against its manifest and return its step.

    Raises:
        CheckpointError: the manifest is missing, damaged or from a newer version, or a file does
            not match it.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if "/" in name or not path.is_file():
            raise CheckpointError(f"{path} is missing", fix="use an older checkpoint")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path} has {size} bytes, its manifest says {expected['bytes']}",
                fix="use an older checkpoint",
            )
        if hash_file(path) != expected["xxh3_128"]:
            raise CheckpointError(
                f"{path} does not match the hash in its manifest", fix="use an older checkpoint"
            )
    return manifest["step"]


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        digest = manifest.pop("xxh3_128")
        version = manifest["format_version"]
        is_intact = xxhash.xxh3_128(_canonical(manifest)).hexdigest() == digest
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: the save did not finish") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not is_intact:
        raise CheckpointError(f"{path} is damaged: it does not match its own hash")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format_version={version}, this library reads up to {FORMAT_VERSION}",
            fix="pip install --upgrade deepseek-framework",
        )
    return manifest
