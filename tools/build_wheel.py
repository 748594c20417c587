"""Build the wheel reproducibly, and hold its content against the git tree.

The wheel is built twice from a clean export of the current commit, with the time of the commit in
place of the clock; both must be equal to the byte. Every file under `src/deepseek` that git knows
must be in it, and none besides.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "deepseek/"


def run(*words: str, cwd: Path = ROOT, **variables: str) -> bytes:
    """Return what a command prints; its errors are shown."""
    env = {**os.environ, **variables}
    return subprocess.run(words, cwd=cwd, env=env, check=True, stdout=subprocess.PIPE).stdout


def current_commit() -> str:
    """Return the commit that HEAD names now: a commit made while the tool runs changes nothing."""
    return run("git", "rev-parse", "HEAD").decode().strip()


def build(folder: Path, commit: str, *options: str) -> Path:
    """Export a commit into `folder`, build there, and return the wheel.

    Args:
        folder: a new one.
        commit: what is built.
        options: of `pip wheel`, such as `--no-build-isolation`.
    """
    source = folder / "source"
    with tarfile.open(fileobj=BytesIO(run("git", "archive", commit))) as archive:
        archive.extractall(source, filter="data")
    moment = run("git", "log", "-1", "--format=%ct", commit).decode().strip()
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir",
        "--disable-pip-version-check", *options, "--wheel-dir", str(folder), ".",
        cwd=source, SOURCE_DATE_EPOCH=moment,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def tracked_files(commit: str) -> dict[str, bytes]:
    """Return what a commit holds below `src/`, by its path in the wheel."""
    with tarfile.open(fileobj=BytesIO(run("git", "archive", commit, "src"))) as archive:
        return {
            member.name.removeprefix("src/"): file.read()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }


def differences(wheel: Path, tracked: dict[str, bytes]) -> list[str]:
    """Return how the package in the wheel differs from the git tree, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name: archive.read(name) for name in archive.namelist() if name.startswith(PACKAGE)
        }
    lines = [f"not in the wheel: {name}" for name in sorted(tracked.keys() - packed.keys())]
    lines += [f"not in git: {name}" for name in sorted(packed.keys() - tracked.keys())]
    both = sorted(tracked.keys() & packed.keys())
    return lines + [f"differs: {name}" for name in both if tracked[name] != packed[name]]


def main() -> None:
    """Build twice, compare, keep the wheel in `dist/`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    commit = current_commit()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        wheels = [build(Path(folder), commit) for folder in (first, second)]
        hashes = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
        if hashes[0] != hashes[1]:
            sys.exit(f"two builds differ: {hashes[0]} and {hashes[1]}")
        found = differences(wheels[0], tracked_files(commit))
        if found:
            sys.exit("\n".join(found))
        args.output.mkdir(parents=True, exist_ok=True)
        target = args.output / wheels[0].name
        target.write_bytes(wheels[0].read_bytes())
    print(f"{target}\ncommit {commit}\nsha256 {hashes[0]}")


if __name__ == "__main__":
    main()
