"""Sentences of finance: fine-tuned MiniLM in folds, and its speed.

    python benchmarks/finance_sentences.py --data ../shared/data --only phrasebank --folds 0

A part says in its own file what it measures and how.
"""

import argparse
import json
from pathlib import Path

import torch

import finance_phrasebank
import finance_speed
from measure import markdown_table, report


def phrasebank(args: argparse.Namespace) -> list[dict]:
    """Sentences that all annotators agree on, and those that half of them do."""
    return [row for which in args.agreement for row in finance_phrasebank.run(args, which)]


PARTS = {"phrasebank": phrasebank, "speed": finance_speed.run}


def show(rows: list[dict]) -> str:
    """Return rows as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: object) -> str:
        return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)

    return markdown_table(names, [[cell(row.get(name)) for name in names] for row in rows])


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/finance"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--agreement", nargs="+", default=["All"], help="50, 66, 75, All")
    parser.add_argument("--num-folds", type=int, default=5)
    parser.add_argument("--folds", type=int, nargs="+", help="those to run; all by default")
    parser.add_argument("--recipe", type=json.loads, default={}, help="settings as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = {name: PARTS[name](args) for name in args.only}
    table = "\n\n".join(f"{name}\n\n{show(own)}" for name, own in rows.items())
    records = [{"part": name, **row} for name, own in rows.items() for row in own]
    report(args, records, table, "Scores in per cent, mean and standard deviation over folds.")


if __name__ == "__main__":
    main()
