"""Ways to run a model, and what `optimize` chose, in one run: how many times as fast as eager fp32.

Each way is converted and then timed in a process of its own, in turns with eager fp32, at batch 1
and 32. First `optimize` searches for latency, then for throughput; its files are timed like the
others. Weights and inputs are random, so any loss of agreement is allowed: this is about time.

    python benchmarks/deploy.py                    ResNet-18, ResNet-50 and a BERT-size encoder
    python benchmarks/deploy.py --small            models of a second, to see that it works
    python benchmarks/deploy.py --only encoder --budget 8m
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepseek.datasets import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
from deepseek.deploy import optimize
from deepseek.deploy.artefact import read_description
from deepseek.deploy.optimization.candidate import BASE, Candidate
from deepseek.deploy.optimization.process import Limits, run_trial
from deepseek.deploy.optimization.trial import TrialTask
from deepseek.deploy.optimization.turns import Round, Timing, summarise
from deepseek.deploy.runtimes import RUNTIMES
from deepseek.models import ModelEngine
from measure import markdown_table, report

WAYS = (
    BASE, Candidate("eager", "bf16"), Candidate("compiled"), Candidate("compiled", "bf16"),
    Candidate("aoti"), Candidate("aoti", "bf16"), Candidate("compiled", "fp32", "int8_dynamic"),
    Candidate("aoti", "fp32", "int8_static"), Candidate("onnxruntime"),
    Candidate("onnxruntime", "int8"), Candidate("openvino"), Candidate("openvino", "bf16"),
    Candidate("openvino", "int8"),
)  # fmt: skip
LIMIT_S = 600.0
NUM_SAMPLES = 128
CLASSES = tuple(f"class {at}" for at in range(10))


@dataclass(frozen=True)
class Subject:
    """A model and what it takes."""

    make: Callable[[], ModelEngine]
    sample: Callable[[int], Tensor]
    spec: DataSpec


def pictures(architecture: str, size: int) -> Subject:
    """Return a classifier of pictures."""
    fields = {"inputs": FieldSpec((3, size, size), "uint8")}
    spec = DataSpec("classification", fields, CLASSES, (1,) * len(CLASSES), "none", IMAGENET)
    return Subject(
        lambda: ModelEngine(architecture, num_classes=len(CLASSES)),
        lambda count: torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
        spec,
    )


def tokens(num_layers: int, dim: int, heads: int, length: int, vocab_size: int) -> Subject:
    """Return a classifier of texts."""
    fields = {"inputs": FieldSpec((length,), "int64")}
    spec = DataSpec("sequence_classification", fields, CLASSES, (1,) * len(CLASSES))
    sizes = {"num_layers": num_layers, "dim": dim, "heads": heads, "context_length": length}
    return Subject(
        lambda: ModelEngine("encoder", num_classes=len(CLASSES), vocab_size=vocab_size, **sizes),
        lambda count: torch.randint(1, vocab_size, (count, length)),
        spec,
    )


def subjects(is_small: bool) -> dict[str, Subject]:
    """Return the models by name."""
    if is_small:
        return {"resnet20": pictures("resnet20", 32), "encoder": tokens(2, 64, 2, 32, 1000)}
    return {
        "resnet18": pictures("resnet18", 224), "resnet50": pictures("resnet50", 224),
        "encoder": tokens(12, 768, 12, 128, 30522),
    }  # fmt: skip


class Bench:
    """Times ways to run one model.

    Args:
        name: of the model.
        subject: the model.
        folder: for files.
        args: of the command.
    """

    def __init__(self, name: str, subject: Subject, folder: Path, args) -> None:
        torch.manual_seed(0)
        self._name, self._folder, self._args = name, folder, args
        self._engine = subject.make().eval()
        self._engine.bind(subject.spec)
        self._samples = subject.sample(NUM_SAMPLES)
        self._ways = (*WAYS[:4], WAYS[-2]) if args.small else WAYS

    def run(self) -> list[dict]:
        """Return a record for each way."""
        chosen = [self._search(target) for target in ("latency", "throughput")]
        work = self._folder / "work"
        work.mkdir()
        self._engine.save(work / "model.bin")
        self._write_data(work / "data.safetensors")
        base = self._convert(BASE, work)
        records = []
        for way in self._ways:
            path = base if way == BASE else self._convert(way, work)
            records.append(self._measure(way.name, way, path, base, work))
        for label, path in chosen:
            found = read_description(path)
            way = Candidate(
                found.runtime, found.execution.precision, "", threads=found.execution.threads
            )
            records.append(self._measure(label, way, path, base, work))
        return records

    def _search(self, target: str) -> tuple[str, Path]:
        """Return what `optimize` chose, and a copy of its file; trials are done once."""
        found = optimize(
            self._engine, self._samples, target, 1.0, self._args.budget,
            out=self._folder / "search", max_samples=32, sparsities=(),
            runtimes=("eager", "openvino") if self._args.small else None,
        )  # fmt: skip
        copy = self._folder / target
        shutil.copytree(found.path.parent, copy)
        return f"optimize for {target}: {found.best.candidate.name}", copy / found.path.name

    def _write_data(self, path: Path) -> None:
        save_file({"inputs": self._samples[:64], "calibration": self._samples[64:].clone()}, path)

    def _task(self, way: Candidate, path: Path, base: Path, work: Path) -> TrialTask:
        return way.make_task(
            work / "model.bin", base, path, work / "data.safetensors", work / "result.json",
            batch_sizes=(32,), base_threads=self._args.threads, seconds=self._args.seconds,
        )  # fmt: skip

    def _convert(self, way: Candidate, work: Path) -> Path | str:
        folder = work / way.name.replace(" ", "-")
        folder.mkdir()
        path = folder / f"model{RUNTIMES.get(way.runtime).suffix}"
        task = self._task(way, path, path, work)
        found = run_trial("convert", task, work, Limits(LIMIT_S, None))
        return found.get("error", path)

    def _measure(
        self, label: str, way: Candidate, path: Path | str, base: Path, work: Path
    ) -> dict:
        found = {"error": path}
        if isinstance(path, Path):
            task = self._task(way, path, base, work)
            found = run_trial("measure", task, work, Limits(LIMIT_S, None))
        if "error" in found:
            return {"model": self._name, "way": label, "error": found["error"]}
        both = (found["one"], found["batches"][0]["rounds"])
        one, many = (summarise([Round(**each) for each in rounds]) for rounds in both)
        return {
            "model": self._name, "way": label, "one": _record(one), "many": _record(many),
            "file_mb": found["file_bytes"] / 1e6, "ready_s": found["ready_s"],
        }  # fmt: skip


def _record(timing: Timing) -> dict:
    low, high = timing.ratio_quartiles
    return {
        "ratio": timing.ratio, "spread": (high - low) / 2, "ms": 1000 * timing.seconds,
        "rounds": timing.num_rounds, "quiet": timing.is_quiet,
    }  # fmt: skip


def _row(record: dict) -> tuple[str, ...]:
    if "error" in record:
        return record["model"], record["way"], record["error"][:60], "", "", "", ""
    cells = []
    for key in ("one", "many"):
        mark = "" if record[key]["quiet"] else " ~"
        cells += [
            f"{record[key]['ratio']:.2f} ± {record[key]['spread']:.2f}{mark}",
            f"{record[key]['ms']:.2f}",
        ]
    return (
        record["model"], record["way"], *cells, f"{record['file_mb']:.1f}",
        f"{record['ready_s']:.1f}",
    )  # fmt: skip


def _verdict(records: list[dict]) -> str:
    """Return how what was chosen compares with the best single way, for each model."""
    lines = []
    for model in dict.fromkeys(record["model"] for record in records):
        for key, target in (("one", "latency"), ("many", "throughput")):
            done = [each for each in records if each["model"] == model and "error" not in each]
            single = [each for each in done if not each["way"].startswith("optimize")]
            own = [each for each in done if each["way"].startswith(f"optimize for {target}")]
            if single and own:
                best = max(single, key=lambda each: each[key]["ratio"])
                share = own[0][key]["ratio"] / best[key]["ratio"]
                lines.append(
                    f"{model}, {target}: chosen {own[0][key]['ratio']:.2f}x eager,"
                    f" {share:.2f} of the best single way ({best['way']})."
                )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="models, by name")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="4m", help="of each search")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a batch size")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = []
    for name, subject in subjects(args.small).items():
        if not args.only or name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                records += Bench(name, subject, Path(folder), args).run()
    header = ("model", "way", "batch 1", "ms", "batch 32", "ms", "MB", "ready s")
    notes = (
        f"Times as fast as eager fp32, {args.threads} threads; medians of rounds of turns, with"
        f" half the distance of the quartiles; ~: other programs used the machine.\n"
        f"{_verdict(records)}"
    )
    rows = [(*_row(record), "")[: len(header)] for record in records]
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
