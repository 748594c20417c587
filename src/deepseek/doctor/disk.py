"""The disks: room and kind of the folder of runs and of the temporary folder, and the compiler."""

import shutil
from pathlib import Path

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.machine import Machine
from deepseek.doctor.memory import GIB, gib

MIN_RUN_BYTES = 10 * GIB
MIN_TEMPORARY_BYTES = 2 * GIB
FULL_BYTES = GIB
NETWORK_KINDS = ("nfs", "nfs4", "cifs", "fuse.sshfs", "lustre", "gpfs", "ceph", "beegfs", "9p")


def mount_of(machine: Machine, folder: Path) -> tuple[str, str, set[str]]:
    """Return where the file system of `folder` is mounted, its kind and its options."""
    best = ("", "", set[str]())
    for line in (machine.read("/proc/self/mounts") or "").splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        place = words[1].replace("\\040", " ")
        is_above = place == "/" or folder == Path(place) or Path(place) in folder.parents
        # of several mounts at one place the last is the one that is seen
        if is_above and len(place) >= len(best[0]):
            best = (place, words[2], set(words[3].split(",")))
    return best


@check(
    "disk.runs",
    asks="the folder where runs are written has room for checkpoints, and keeps them",
    mend="free some room, or write runs elsewhere with output=/large/disk/runs",
)
def check_runs(machine: Machine) -> Findings:
    """Room, inodes, read-only, and the kind of file system."""
    space = machine.space(machine.folder)
    place, kind, options = mount_of(machine, machine.folder)
    if space is None:
        yield problem(f"{machine.folder} does not exist", None)
        return
    value = {"free_bytes": space.free_bytes, "kind": kind, "mounted_at": place}
    free = f"{gib(space.free_bytes)} free in {machine.folder}"
    if "ro" in options:
        yield problem(f"{place} is mounted read-only", value)
    elif space.free_bytes < FULL_BYTES:
        yield problem(f"only {free}", value)
    elif space.total_inodes and space.free_inodes < 1000:
        yield problem(f"{place} has {space.free_inodes} inodes left: no more files", value)
    elif space.free_bytes < MIN_RUN_BYTES:
        yield warning(f"{free}: not enough for the checkpoints of a large model", value)
    elif kind in ("overlay", "tmpfs") and machine.inside() is not None:
        mend = "mount a volume, and write runs there"
        yield note(f"{free}, which goes away with the container ({kind})", value, mend=mend)
    elif kind in NETWORK_KINDS:
        yield note(f"{free}, on a network file system ({kind}): saving takes longer", value)
    else:
        yield ok(f"{free} ({kind or 'unknown file system'})", value)


@check(
    "disk.temporary",
    asks="the temporary folder has room, and programs may be loaded from it (torch.compile does)",
    mend="set TMPDIR and TORCHINDUCTOR_CACHE_DIR to a folder with room, not mounted noexec",
)
def check_temporary(machine: Machine) -> Findings:
    """Room, and `noexec`."""
    folder = machine.env.get("TMPDIR", "/tmp")
    space = machine.space(machine.path(folder))
    options = mount_of(machine, Path(folder))[2]
    if space is None:
        yield problem(f"the temporary folder {folder} does not exist", None)
    elif "noexec" in options:
        yield warning(
            f"{folder} is mounted noexec: torch.compile cannot load what it makes", folder
        )
    elif space.free_bytes < MIN_TEMPORARY_BYTES:
        yield warning(f"only {gib(space.free_bytes)} free in {folder}", space.free_bytes)
    else:
        yield ok(f"{gib(space.free_bytes)} free in {folder}", space.free_bytes)


@check(
    "compile.compiler",
    asks="there is a C++ compiler, which torch.compile needs",
    mend="sudo apt-get install g++ (or set CXX)",
)
def check_compiler(machine: Machine) -> Findings:
    """The compiler that torch's inductor calls."""
    name = machine.env.get("CXX", "g++")
    path = machine.env.get("PATH", "")
    found = next((n for n in (name, "clang++", "c++") if shutil.which(n, path=path)), None)
    if found:
        yield ok(f"{found} is there", found)
    else:
        yield note(f"no {name}: torch.compile does not work", None, mend=check_compiler.mend)


CHECKS = (check_runs, check_temporary, check_compiler)
