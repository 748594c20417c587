"""Text of finance: fine-tuning in folds, adaptation, growth, several tasks, speed.

    python benchmarks/finance.py --data ../shared/data --only phrasebank --agreement All 50
    python benchmarks/finance.py --data ../shared/data --only adaptation --budget-min 20

Each part says in its own file what it measures and how.
"""

import argparse
import json
from pathlib import Path

import torch

import finance_adaptation
import finance_multitask
import finance_phrasebank
import finance_scratch
import finance_speed
import finance_vocabulary
from measure import markdown_table, report

PARTS = {
    "phrasebank": finance_phrasebank.run,
    "adaptation": finance_adaptation.run,
    "scratch": finance_scratch.run,
    "vocabulary": finance_vocabulary.run,
    "multitask": finance_multitask.run,
    "speed": finance_speed.run,
}


def show(rows: list[dict]) -> str:
    """Return rows as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: object) -> str:
        return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)

    return markdown_table(names, [[cell(row.get(name)) for name in names] for row in rows])


def name_or_settings(text: str) -> str | dict:
    """Return a weighting as the Trainer takes it."""
    return json.loads(text) if text.startswith("{") else text


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/finance"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--agreement", nargs="+", default=["All"], help="50, 66, 75, All")
    parser.add_argument("--num-folds", type=int, default=5)
    parser.add_argument(
        "--folds", type=int, nargs="+", help="those to run; all by default, of scratch the first"
    )
    parser.add_argument("--held-back", type=float, default=0.1, help="0: the last weights count")
    parser.add_argument("--budget-min", type=float, default=15, help="of a pretraining, minutes")
    parser.add_argument(
        "--pretrain", type=json.loads, default={}, help="settings of a pretraining as JSON"
    )
    parser.add_argument("--first-epochs", type=int, default=0, help="of near tasks; 0: none")
    parser.add_argument("--head-steps", type=int, default=200, help="of a new head, alone")
    parser.add_argument("--replay", type=float, default=0.1, help="share of general text")
    parser.add_argument("--growth-epochs", type=int, default=0, help="of Twitter; 0: none")
    parser.add_argument(
        "--weightings", nargs="+", default=["equal", "uncertainty", "famo"], type=name_or_settings,
        help="""names, or tables as JSON: '{"name": "uncertainty", "lr": 0.01}'""",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", type=json.loads, default={}, help="settings as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = {}
    for name in args.only:
        rows[name] = PARTS[name](args)
    table = "\n\n".join(f"{name}\n\n{show(own)}" for name, own in rows.items())
    records = [{"part": name, **row} for name, own in rows.items() for row in own]
    report(args, records, table, "Scores in per cent, mean and standard deviation over folds.")


if __name__ == "__main__":
    main()
