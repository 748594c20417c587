"""The same program in a bare loop, four peers and ours: time, lines, accuracy, exact resume.

`coming_from/` holds the programs, which `docs/coming_from.md` shows. Each trains one small network
on the same digits with the same batch, optimizer, clipping, precision and epochs, evaluates and
saves after every epoch, and keeps the best model. Each is run in a process of its own, in turns.

`start` is imports; `train` is all that `train` does, evaluations, checkpoints and what a framework
does around them (ours also judges the best model and draws a report); `images/s` is training images
over that time. `resume` is the largest difference of probabilities on the validation data between a
run of E epochs and one that stopped after half of them and was resumed in another process: 0 means
the same bits.
"""

import argparse
import ast
import importlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

from measure import machine, markdown_table, spread

FOLDER = Path(__file__).with_name("coming_from")
# program, how it is called, the package that it is about
PROGRAMS = {
    "bare_loop": ("bare loop, torch", "torch"),
    "with_accelerate": ("Accelerate", "accelerate"),
    "with_lightning": ("Lightning", "lightning"),
    "with_hf_trainer": ("HF Trainer", "transformers"),
    "with_keras": ("Keras", "keras"),
    "with_deepseek": ("deepseek", "deepseek"),
}


def count_lines(source: str) -> int:
    """Return how many lines hold code: no docstrings, comments, or what stands below `__main__`."""
    tree = ast.parse(source)
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, holders) and ast.get_docstring(node) is not None:
            text = node.body[0]
            dropped |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    main = [node for node in tree.body if isinstance(node, ast.If)]
    for node in main:
        dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in dropped
        for number, line in enumerate(source.splitlines(), 1)
    )


def work(program: str, folder: Path, epochs: int, resume: bool, threads: int) -> None:
    """Run one program in this process; its record goes to a file in `folder`."""
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(FOLDER))
    began = perf_counter()
    module = importlib.import_module(program)
    imported = perf_counter()
    best = module.train(folder / "run", epochs, resume)
    trained = perf_counter()
    task = importlib.import_module("digits_task")
    train_data, val_data = task.load_split()
    probs = module.predict(folder / "run", val_data.tensors[0])
    record = {
        "import_s": imported - began,
        "train_s": trained - imported,
        "num_images": len(train_data),
        "best_accuracy": best,
        "accuracy_of_file": (probs.argmax(1) == val_data.tensors[1]).float().mean().item(),
        "probs": probs.tolist(),
    }
    (folder / "record.json").write_text(json.dumps(record))


def run(program: str, folder: Path, epochs: int, threads: int, resume: bool = False) -> dict:
    """Run one program in a process of its own; return its record."""
    command = [sys.executable, __file__, "--work", program, "--folder", str(folder)]
    command += ["--epochs", str(epochs), "--threads", str(threads), *(["--resume"] * resume)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads)}
    folder.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    wall_s = perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{program} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads((folder / "record.json").read_text()) | {"wall_s": wall_s}


def resume_difference(program: str, whole: dict, folder: Path, epochs: int, threads: int) -> float:
    """Return how far the probabilities of a resumed run are from those of `whole`."""
    run(program, folder, epochs // 2, threads)
    parts = run(program, folder, epochs, threads, resume=True)
    return max(
        abs(a - b)
        for whole_row, row in zip(whole["probs"], parts["probs"], strict=True)
        for a, b in zip(whole_row, row, strict=True)
    )


def compare(programs: list[str], args: argparse.Namespace) -> list[dict]:
    """Return a record per program."""
    trials: dict[str, list[dict]] = {program: [] for program in programs}
    differences = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(args.rounds):
            for program in programs:
                folder = Path(temporary) / f"{program}-{number}"
                trials[program].append(run(program, folder, args.epochs, args.threads))
                print(f"round {number + 1} {program} {trials[program][-1]['wall_s']:.1f} s")
        for program in programs:
            folder = Path(temporary) / f"{program}-parts"
            first = trials[program][0]
            differences[program] = resume_difference(
                program, first, folder, args.epochs, args.threads
            )
    records = []
    for program, rows in trials.items():
        speeds = [args.epochs * row["num_images"] / row["train_s"] for row in rows]
        records.append(
            {
                "program": program,
                "version": _version(PROGRAMS[program][1]),
                "lines": count_lines((FOLDER / f"{program}.py").read_text(encoding="utf-8")),
                "wall_s": spread([row["wall_s"] for row in rows]),
                "import_s": spread([row["import_s"] for row in rows]),
                "train_s": spread([row["train_s"] for row in rows]),
                "images_per_s": spread(speeds),
                "best_accuracy": median(row["best_accuracy"] for row in rows),
                "accuracy_of_file": median(row["accuracy_of_file"] for row in rows),
                "resume_difference": differences[program],
                "trials": [{k: v for k, v in row.items() if k != "probs"} for row in rows],
            }
        )
    return records


def _version(package: str) -> str:
    try:
        return version(package if package != "deepseek" else "deepseek-framework")
    except PackageNotFoundError:
        return "source"


def to_row(record: dict) -> list[str]:
    """Return the cells of a record."""
    difference = record["resume_difference"]
    return [
        f"{PROGRAMS[record['program']][0]} {record['version']}",
        str(record["lines"]),
        f"{record['import_s'][0]:.1f}",
        f"{record['train_s'][0]:.2f} ± {record['train_s'][1]:.2f}",
        f"{record['images_per_s'][0]:,.0f}",
        f"{record['wall_s'][0]:.1f} ± {record['wall_s'][1]:.1f}",
        f"{100 * record['best_accuracy']:.2f} %",
        "same bits" if difference == 0 else f"differs by {difference:.2g}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the 1,437 digits")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--only", nargs="*", choices=PROGRAMS, help="some of the programs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    parser.add_argument("--work", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.folder, args.epochs, args.resume, args.threads)
        return
    programs = [p for p in args.only or PROGRAMS if find_spec(PROGRAMS[p][1]) is not None]
    records = compare(programs, args)
    header = ["program", "lines", "start s", "train s", "images/s", "wall s", "accuracy", "resume"]
    print(f"\n{markdown_table(header, [to_row(record) for record in records])}\n")
    print(f"{args.epochs} epochs, {args.rounds} rounds, medians ± half the interquartile range.")
    if args.json:
        settings = {"rounds": args.rounds, "epochs": args.epochs, "threads": args.threads}
        body = {"machine": machine(), "settings": settings, "records": records}
        args.json.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
