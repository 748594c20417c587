"""Accuracy of published weights of a ResNet on the test images of CIFAR-10.

The weights are those of Yerlan Idelbayev's pytorch_resnet_cifar10 (BSD-2), normalised as its README
says: ImageNet's mean and standard deviation. In fp32, for the figure has two decimals.
"""

import argparse
import json
from pathlib import Path

from deepseek.datasets import ImageDataset
from deepseek.errors import DataError
from deepseek.models import ModelEngine
from deepseek.trainer import evaluate_model


def main() -> None:
    """Evaluate, and write the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="resnet20, resnet32, resnet44, resnet56")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the metrics")
    args = parser.parse_args()
    folder = args.data / "weights_resnet_cifar10"
    weights = next(folder.glob(f"{args.model}-*.th"), None)
    if weights is None:
        raise DataError(f"no {args.model}-*.th in {folder}", fix="get them from the repository")
    test = ImageDataset(str(args.data / "cifar10" / "test"), "normalize_imagenet")
    # a state dict that was pickled; it is read by torch's restricted unpickler
    engine = ModelEngine(args.model, weights=weights, allow_pickle=True)
    engine.bind(test.spec)
    metrics = evaluate_model(engine, test, batch_size=100, num_workers=0, precision="fp32")
    args.output.write_text(json.dumps({"model": args.model, "num_samples": len(test), **metrics}))
    print(f"{args.model}: accuracy {metrics['accuracy']:.4f} on {len(test):,} images")


if __name__ == "__main__":
    main()
