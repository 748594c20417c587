"""The whole path on handwritten digits: a config, a trained model, a report, a prediction.

`make demo` runs this. It calls the command line as a user would, and fails where it fails.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from deepseek.datasets import ImageDataset

FOLDER = Path("demo")
DEEPSEEK = Path(sys.executable).with_name("deepseek")


def run(*arguments: str | Path) -> None:
    """Show a command and run it."""
    print(f"\n$ deepseek {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([DEEPSEEK, *arguments], check=True)


def main() -> None:
    """Train, look, predict."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    began = perf_counter()
    run("init", "digits", "--output", FOLDER / "model_config.yaml")
    run("train", FOLDER / "model_config.yaml", "--run-dir", FOLDER / "run")
    print(f"\ntrained and reported in {perf_counter() - began:.0f} s")

    digits = ImageDataset("digits", channels=1)
    for index in (0, 11, 23):
        # as large as a person would draw it
        digits.image(index).resize((64, 64)).save(FOLDER / f"digit_{digits.targets[index]}.png")
    run("predict", FOLDER / "run" / "model.bin", *sorted(FOLDER.glob("digit_*.png")))
    print(f"\nopen {FOLDER / 'run' / 'report.html'} in a browser")


if __name__ == "__main__":
    main()
