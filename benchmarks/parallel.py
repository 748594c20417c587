"""Tokens per second of data parallel and sharded training: ours beside its peers, in one run.

Each contestant has processes of its own, as torchrun starts them, with one thread each; they train
turns of some steps in rotation, there and back, while the others wait. All of that is begun anew
some times, for the same loop is up to 3 % faster in one process than in the next. The time of a
step is rank 0's, from the end of one to the end of the next; ratios are those of the medians of a
round. `CPU ms` is what a step costs each process without waiting: where others use the cores, too,
it says more than the clock. A GPU's work is not in it.

    python benchmarks/parallel.py                                   two processes on the CPU
    python benchmarks/parallel.py --precision fp32 bf16
    python benchmarks/parallel.py --device cuda                     NCCL, one process per GPU
    python benchmarks/parallel.py --device cuda --nproc 1 --compile

That all train the same is checked: the loss of every step must be that of the bare loop.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch

from measure import markdown_table, report, spread
from parallel_loops import LOOPS, Setup

WORKER = Path(__file__).with_name("parallel_loops.py")
STRATEGIES = {"one": "one process", "ddp": "data parallel (DDP)", "fsdp": "sharded (FSDP2)"}
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Largest difference of losses, as a share: rounding, after some hundred steps."""


@dataclass
class Result:
    """What was measured of a contestant.

    Attributes:
        name: of the contestant.
        turns_s: seconds of each step, by turn.
        cpu_s: seconds of CPU of a step and process, by turn.
        losses: of each step, over all starts.
        error: why it did not run.
    """

    name: str
    turns_s: list[list[float]] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    error: str | None = None


class Team:
    """The processes of one contestant, from start to end."""

    def __init__(self, result: Result, setup: Setup, num_processes: int, folder: Path) -> None:
        self.result = result
        folder.mkdir()
        shared = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "TORCHELASTIC_RUN_ID": "benchmark",
            "OMP_NUM_THREADS": "1",
        }
        fields = json.dumps(asdict(setup))
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), result.name, fields, str(folder / f"{rank}.log")],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(num_processes)
        ]  # fmt: skip

    def train(self, steps: int, is_timed: bool = True) -> None:
        """Train a turn, and note what it took; nothing from the first failure on."""
        if self.result.error is not None:
            return
        with contextlib.suppress(BrokenPipeError):  # its answer says why
            for process in self._processes:
                process.stdin.write(f"{steps}\n")
                process.stdin.flush()
        answers = []
        for process in self._processes:
            answer = json.loads(process.stdout.readline() or '{"error": "it ended"}')
            if "error" in answer:
                self.result.error = answer["error"]
                self.close()
                return
            answers.append(answer)
        each = zip(*(answer["losses"] for answer in answers), strict=True)
        self.result.losses += [sum(losses) / len(losses) for losses in each]
        if is_timed:
            self.result.turns_s.append(answers[0]["steps_s"])
            self.result.cpu_s.append(sum(answer["cpu_s"] for answer in answers) / len(answers))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(
    results: Sequence[Result], setup: Setup, args: argparse.Namespace
) -> Iterator[list[Team]]:
    """Start a team per contestant, one after the other, and let each warm up."""
    teams: list[Team] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            for number, result in enumerate(results):
                place = Path(folder) / str(number)
                teams.append(Team(result, setup, args.nproc, place))
                teams[-1].train(args.warm_steps, is_timed=False)
                if result.error is not None and args.show_logs:
                    print((place / "0.log").read_text(encoding="utf-8"), file=sys.stderr)
            yield teams
        finally:
            for team in teams:
                team.close()


def compare(strategy: str, precision: str, args: argparse.Namespace) -> list[dict]:
    """Return a record per contestant."""
    steps = args.warm_steps + args.rounds * (args.steps + 1)
    setup = Setup(
        strategy, precision, args.device, args.compile, steps, args.batch_size, args.context,
        args.vocabulary, args.num_layers, args.dim, args.heads,
    )  # fmt: skip
    names = ("deepseek", "torch") if args.compile else tuple(LOOPS[strategy])
    results = [Result(name) for name in names]
    for _ in range(args.starts):
        with started([r for r in results if r.error is None], setup, args) as teams:
            for number in range(args.rounds):
                for team in teams if number % 2 == 0 else teams[::-1]:
                    team.train(args.steps + 1)
    reference = next(result for result in results if result.name == "torch")
    if reference.error is not None:
        sys.exit(f"error: the bare loop did not run: {reference.error}")
    own = next((r for r in results if r.name == "deepseek" and r.error is None), None)
    return [to_record(result, own, reference, setup, args.nproc) for result in results]


def to_record(
    result: Result, own: Result | None, reference: Result, setup: Setup, num_processes: int
) -> dict:
    """Return what was measured of a contestant, with its ratios to ours."""
    record = {
        "strategy": setup.strategy, "precision": setup.precision, "contestant": result.name,
        "error": result.error,
    }  # fmt: skip
    if result.error is not None:
        return record
    tokens = setup.batch_size * setup.context * num_processes
    differences = [
        abs(loss - other) / other
        for loss, other in zip(result.losses, reference.losses, strict=True)
    ]
    steps_ms = [1e3 * step_s for turn in result.turns_s for step_s in turn]
    step_ms, step_spread_ms = spread(steps_ms)
    record |= {
        "tokens_per_s": 1e3 * tokens / step_ms,
        "step_ms": step_ms,
        "step_spread_ms": step_spread_ms,
        "fast_step_ms": sorted(steps_ms)[len(steps_ms) // 10],
        "cpu_ms": 1e3 * median(result.cpu_s),
        "last_loss": result.losses[-1],
        "loss_differs_by": max(differences),
        "trains_the_same": max(differences) <= TOLERANCE[setup.precision],
        "turns_s": result.turns_s,
        "cpu_s": result.cpu_s,
        "losses": result.losses,
    }
    if own is not None:
        ratios = [
            median(one) / median(other)
            for one, other in zip(result.turns_s, own.turns_s, strict=True)
        ]
        record["ours_is_faster_by"], record["ratio_spread"] = spread(ratios)
        cpu = [one / other for one, other in zip(result.cpu_s, own.cpu_s, strict=True)]
        record["ours_takes_less_cpu_by"], record["cpu_ratio_spread"] = spread(cpu)
    return record


def to_row(record: dict, best: dict | None) -> list[str]:
    """Return the cells of a record."""
    head = [STRATEGIES[record["strategy"]], record["precision"], record["contestant"]]
    if record["error"] is not None:
        return [*head, *[""] * 7]
    ratio = cpu_ratio = "-"
    if record["contestant"] != "deepseek" and "ours_is_faster_by" in record:
        mark = " best" if record is best else ""
        ratio = f"{record['ours_is_faster_by']:.3f} ± {record['ratio_spread']:.3f} x{mark}"
        cpu_ratio = f"{record['ours_takes_less_cpu_by']:.3f} ± {record['cpu_ratio_spread']:.3f} x"
    same = "" if record["trains_the_same"] else " DIFFERS"
    return [
        *head,
        f"{record['tokens_per_s']:,.0f}",
        f"{record['step_ms']:,.1f} ± {record['step_spread_ms']:,.1f}",
        f"{record['fast_step_ms']:,.1f}",
        ratio,
        f"{record['cpu_ms']:,.1f}",
        cpu_ratio,
        f"{record['last_loss']:.4f}, {record['loss_differs_by']:.0e}{same}",
    ]


def best_peer(records: Sequence[dict]) -> dict | None:
    """Return the fastest that is not ours."""
    peers = [r for r in records if r["error"] is None and r["contestant"] != "deepseek"]
    return max(peers, key=lambda r: r["tokens_per_s"], default=None)


def describe(args: argparse.Namespace, records: Sequence[dict]) -> str:
    """Return what the table does not say."""
    graph = "compiled" if args.compile else "not compiled"
    lines = [
        f"GPT, {args.num_layers} layers of {args.dim}, {args.context} tokens of a vocabulary of"
        f" {args.vocabulary}, {args.batch_size} samples per process, {graph}; {args.nproc}"
        f" process{'es' * (args.nproc > 1)} with 1 thread each on {os.cpu_count()} cores, by"
        f" {'NCCL' if args.device == 'cuda' else 'Gloo'}. AdamW fused, constant rate, clipped to 1;"
        " data in memory, no checkpoints.",
        f"Median of {args.starts} starts x {args.rounds} turns of {args.steps} steps in rotation, ±"
        " half the interquartile range; `fast step`: a tenth are faster; `CPU ms`: of a step and"
        " process; ratios: median of those of each round. `loss`: of the last step, and the largest"
        " difference of any step to torch, as a share.",
    ]
    lines += [
        f"{STRATEGIES[r['strategy']]}, {r['precision']}, {r['contestant']}: did not run here:"
        f" {r['error']}"
        for r in records
        if r["error"] is not None
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nproc", type=int, help="processes; 2, or one per GPU")
    parser.add_argument("--strategies", nargs="+", choices=("ddp", "fsdp"), default=["ddp", "fsdp"])
    parser.add_argument("--precision", nargs="+", choices=tuple(TOLERANCE), default=["fp32"])
    parser.add_argument("--compile", action="store_true", help="ours and torch, in one process")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes, so many times")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contestant and start")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--warm-steps", type=int, default=5, help="steps before the first turn")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per process")
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--show-logs", action="store_true", help="print the log of what failed")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and there is no GPU")
    if args.nproc is None:
        args.nproc = torch.cuda.device_count() if args.device == "cuda" else 2
    if args.compile and args.nproc > 1:
        parser.error("--compile compares one process: add --nproc 1")
    if min(args.starts, args.rounds, args.steps, args.warm_steps, args.nproc) < 1:
        parser.error("--starts, --rounds, --steps, --warm-steps and --nproc count from 1")
    if args.nproc == 1:
        args.strategies = ["one"]
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(1)  # as the contestants have; said in the line of the machine
    rows, records = [], []
    for strategy in args.strategies:
        for precision in args.precision:
            found = compare(strategy, precision, args)
            records += found
            rows += [to_row(record, best_peer(found)) for record in found]
    header = [
        "training", "computes in", "with", "tokens/s", "step ms", "fast step", "ours is faster by",
        "CPU ms", "ours takes less by", "loss",
    ]  # fmt: skip
    notes = describe(args, records)
    report(args, records, markdown_table(header, rows), notes)
    different = [r["contestant"] for r in records if not r.get("trains_the_same", True)]
    if different:
        sys.exit(f"error: not the same training: {', '.join(different)}")


if __name__ == "__main__":
    main()
