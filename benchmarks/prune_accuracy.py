"""Accuracy on CIFAR-10 of published ResNets after pruning and training on.

- structured: half of the FLOPs cut (`prune`), trained on with the original as a teacher.
- dynamic: 80 % of the weights zero (`DynamicPruning`), which come and go in training.
- 2:4: two of every four weights zero (`prune(pattern="2:4")`), kept so in training (`KeepZeros`).

Weights are those of `pytorch_resnet_cifar10` (91.73 % for ResNet-20, 93.39 % for ResNet-56). A run
that was stopped goes on where its last checkpoint is.

    python benchmarks/prune_accuracy.py --data DATA --model resnet20 --epochs 5
"""

import argparse
from pathlib import Path

from deepseek import Trainer
from deepseek.datasets import ImageDataset, infer_spec
from deepseek.deploy import DynamicPruning, KeepZeros, prune
from deepseek.models import ModelEngine
from deepseek.trainer import Distillation, evaluate_model
from measure import markdown_table

CASES = ("structured", "dynamic", "2:4")
AUGMENTED = "random_crop_32_pad_4+hflip+normalize_imagenet"


def run(case: str, original: ModelEngine, args: argparse.Namespace, data: tuple) -> list[str]:
    """Prune, train on and measure; return a row of the table."""
    train, test = data
    model, before, callbacks, cost = original, float("nan"), [], "1.00"
    if case == "structured":
        pruned = prune(original, flops=0.5, criterion=args.criterion, data=train, latency=False)
        model, cost = pruned.model, f"{pruned.after.flops / pruned.before.flops:.2f}"
    elif case == "dynamic":
        callbacks = [DynamicPruning(0.8, end=0.6)]
    else:
        model = prune(original, pattern="2:4", latency=False).model
        callbacks = [KeepZeros()]
    if case != "dynamic":
        before = evaluate_model(model, test, 250)["accuracy"]
    folder = args.output / f"{args.model}-{case.replace(':', '_')}"
    trainer = Trainer(
        model, train, test,
        task=Distillation(original, temperature=args.temperature, weight=args.weight),
        batch_size=128, epochs=args.epochs, optimizer="sgd", lr=args.lr, weight_decay=1e-4,
        callbacks=callbacks, checkpoint_every=200, run_dir=folder, graph=args.graph,
        resume=(folder / "checkpoints").is_dir() or None,
    )  # fmt: skip
    trainer.fit()
    last = trainer.evaluate()["accuracy"]  # of the last step, not the best by the test pictures
    return [case, cost, f"{100 * before:.2f}", f"{100 * last:.2f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and weights")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--weight", type=float, default=0.7, help="of the teacher")
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--graph", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    args = parser.parse_args()
    train = ImageDataset(args.data / "cifar10/train", transform=AUGMENTED)
    test = ImageDataset(
        args.data / "cifar10/test", transform=train.evaluation_transform,
        class_names=train.class_names,
    )  # fmt: skip
    weights = next((args.data / "weights_resnet_cifar10").glob(f"{args.model}-*.th"))
    rows = []
    for case in args.cases:
        original = ModelEngine(args.model, weights=weights, allow_pickle=True, num_classes=10)
        original.bind(infer_spec(train))
        accuracy = evaluate_model(original, test, 250)["accuracy"]
        rows.append([*run(case, original, args, (train, test)), f"{100 * accuracy:.2f}"])
        head = ("case", "FLOPs left", "pruned, %", "trained on, %", "original, %")
        print(markdown_table(head, rows), flush=True)


if __name__ == "__main__":
    main()
