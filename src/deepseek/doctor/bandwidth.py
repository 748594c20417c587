"""How fast ranks talk to each other: starts `bandwidth_worker`, and reads what it measures.

Bus bandwidth is what one link carries, so that one number can be held against the hardware:
algorithm bandwidth (size / time) times 2(n-1)/n for all-reduce, (n-1)/n for all-gather and
reduce-scatter, 1 for broadcast and send/recv (nccl-tests, doc/PERFORMANCE.md).
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepseek.doctor.graphics_cards import count_visible
from deepseek.doctor.machine import Machine
from deepseek.errors import ConfigError, DeepSeekError

WORKER = "deepseek.doctor.bandwidth_worker"
POLL_S = 0.2
MAX_ERROR_LINES = 12


@dataclass(frozen=True)
class Measurement:
    """One collective at one size.

    Attributes:
        collective: `all_reduce` and so on.
        size_bytes: as nccl-tests counts it.
        time_us: of one call; the median, of the slowest rank.
        algorithm_gbs: size by time, GB/s (10^9 bytes).
        bus_gbs: what one link carries, GB/s.
        num_wrong: items of the result that were wrong on the worst rank.
    """

    collective: str
    size_bytes: int
    time_us: float
    algorithm_gbs: float
    bus_gbs: float
    num_wrong: int


@dataclass
class Bandwidth:
    """What was measured.

    Attributes:
        facts: backend, world_size, num_hosts, device, torch.
        rows: in the order of measurement.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Measurement] = field(default_factory=list)

    @property
    def peak_gbs(self) -> float:
        """The best bus bandwidth of an all-reduce, what training asks for most."""
        return max(
            (row.bus_gbs for row in self.rows if row.collective == "all_reduce"), default=0.0
        )

    @property
    def num_wrong(self) -> int:
        """Wrong items over all measurements."""
        return sum(row.num_wrong for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.facts, "rows": [asdict(row) for row in self.rows]}


def bus_factor(collective: str, world_size: int) -> float:
    """Return bus bandwidth by algorithm bandwidth.

    Example:
        >>> bus_factor("all_reduce", 4), bus_factor("all_gather", 4), bus_factor("broadcast", 4)
        (1.5, 0.75, 1.0)
    """
    share = (world_size - 1) / world_size
    return {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": share}.get(
        collective, 1.0
    )


def make_row(facts: Mapping[str, Any], world_size: int) -> Measurement:
    """Return a measurement with its bandwidths."""
    algorithm = facts["size_bytes"] / facts["time_us"] / 1e3
    return Measurement(
        facts["collective"],
        facts["size_bytes"],
        facts["time_us"],
        round(algorithm, 6),
        round(algorithm * bus_factor(facts["collective"], world_size), 6),
        facts["num_wrong"],
    )


def is_inside_job(env: Mapping[str, str]) -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in env and "WORLD_SIZE" in env


def choose_nproc(machine: Machine, nproc: int | None) -> int:
    """Return how many processes to start: one per card that is visible, two without cards.

    Raises:
        ConfigError: too few to talk to each other, or torchrun has chosen already.
    """
    if is_inside_job(machine.env):
        if nproc is not None:
            raise ConfigError(
                f"--nproc {nproc} inside a job of {machine.env['WORLD_SIZE']} processes",
                fix="leave --nproc out under torchrun: each of its processes takes part",
            )
        if machine.env["WORLD_SIZE"] in ("0", "1") or "MASTER_ADDR" not in machine.env:
            raise ConfigError(
                f"WORLD_SIZE={machine.env['WORLD_SIZE']},"
                f" MASTER_ADDR={machine.env.get('MASTER_ADDR', '')!r}: no job of several processes",
                fix="start it with torchrun, or unset RANK and WORLD_SIZE",
            )
        return 1
    if nproc is not None and nproc < 2:
        raise ConfigError(
            f"--nproc {nproc}: one process has nobody to talk to", fix="give --nproc 2 or more"
        )
    cards = count_visible(machine)
    return nproc or (cards if cards > 1 else 2)


def measure_bandwidth(
    sizes: list[int],
    nproc: int | None = None,
    machine: Machine | None = None,
    on_row: Callable[[Bandwidth, Measurement], None] | None = None,
) -> Bandwidth | None:
    """Measure all collectives.

    Args:
        sizes: bytes.
        nproc: processes to start on this machine; by default one per card, else two. Inside a job
            of torchrun this process takes part with one.
        machine: this one by default.
        on_row: called with each measurement as soon as it is there.

    Returns:
        what was measured; `None` on the ranks of a job other than 0.

    Raises:
        ConfigError: the processes cannot be started so.
        DeepSeekError: they failed; says what they wrote last.
    """
    machine = machine or Machine()
    count = choose_nproc(machine, nproc)
    start = [machine.python[0]]
    if not is_inside_job(machine.env):
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    found = Bandwidth()
    with tempfile.TemporaryDirectory(prefix="deepseek-bandwidth-") as folder:
        output = Path(folder, "rows.jsonl")
        output.touch()
        words = [*start, "-m", WORKER, f"--output={output}", f"--sizes={','.join(map(str, sizes))}"]
        for row in _follow(words, output, found, machine.env):
            if on_row is not None:
                on_row(found, row)
    return found if machine.env.get("RANK", "0") == "0" else None


def _follow(
    words: list[str], output: Path, found: Bandwidth, env: Mapping[str, str]
) -> Iterator[Measurement]:
    with tempfile.TemporaryFile() as said, output.open(encoding="utf-8") as lines:
        # NCCL writes to standard output, which may be JSON that somebody reads.
        child = subprocess.Popen(
            words, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=_environment(env)
        )
        try:
            code = None
            is_complete = False
            while not is_complete:
                code = _poll(child)
                for line in iter(lines.readline, ""):
                    facts = json.loads(line)
                    is_complete = "is_complete" in facts
                    if "collective" in facts:
                        found.rows.append(make_row(facts, found.facts["world_size"]))
                        yield found.rows[-1]
                    elif not is_complete:
                        found.facts.update(facts)
                if code is not None:
                    break
            code = child.wait() if code is None else code
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        if code:
            said.seek(0)
            raise _failure(code, said.read().decode("utf-8", errors="replace"))


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    # torchrun warns where it has to choose threads by itself. A `torch.py` or `statistics.py` in
    # the working folder is not what `python -m` is to import, in torchrun or in its workers.
    return {"OMP_NUM_THREADS": "1", **env, "PYTHONSAFEPATH": "1"}


def _poll(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _failure(code: int, said: str) -> DeepSeekError:
    # Every rank says it, and torchrun once more.
    lines = list(dict.fromkeys(line for line in said.splitlines() if line.strip()))
    causes = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
    shown = "\n    ".join(line[:300] for line in (causes or lines)[-MAX_ERROR_LINES:])
    return DeepSeekError(
        f"the bandwidth test ended with code {code}:\n    {shown or 'it said nothing'}",
        fix="run `deepseek doctor`, then again with NCCL_DEBUG=INFO TORCH_CPP_LOG_LEVEL=INFO",
        see="docs/doctor.md#when-the-bandwidth-test-fails",
    )
