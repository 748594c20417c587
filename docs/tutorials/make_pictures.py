"""Draw the pictures of the tutorials from flowers, tinyshakespeare and made-up clicks.

    python docs/tutorials/make_pictures.py DATA images_run text_run clicks_run

`DATA` holds `flowers5/` (class folders of photographs) and `tinyshakespeare/input.txt`. Runs that
are there already are drawn again without training. They are sections of
the reports, taken by a Chromium on the path.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import chdir
from pathlib import Path

from PIL import Image, ImageChops

from deepseek import Trainer
from deepseek.cli.main import run
from deepseek.datasets import TextDataset
from deepseek.models import GPT

HERE = Path(__file__).parent
NUM_PHOTOGRAPHS = 120  # of each kind


def train_images(data: Path, run_dir: Path) -> None:
    """Train as `images.md` does, for longer."""
    flowers = run_dir.with_name("flowers")
    for kind in sorted(path for path in (data / "flowers5").iterdir() if path.is_dir()):
        (flowers / kind.name).mkdir(parents=True)
        for photograph in sorted(kind.iterdir())[:NUM_PHOTOGRAPHS]:
            (flowers / kind.name / photograph.name).symlink_to(photograph.resolve())
    configuration = str(run_dir.with_name("images.yaml"))
    run(["init", "images", "--data", str(flowers), "--output", configuration])
    settings = [
        "model.architecture=resnet20", "data.transform=resize_56+random_crop_48+hflip",
        "data.num_workers=0", "trainer.epochs=10",
    ]  # fmt: skip
    run(["train", configuration, *settings, "--run-dir", str(run_dir)])


def train_text(data: Path, run_dir: Path) -> None:
    """Train as `text.md` does."""
    text = data / "tinyshakespeare" / "input.txt"
    train_data, val_data = TextDataset(text, tokenizer="characters", sequence_length=64).split(0.1)
    model = GPT(context_length=64, num_layers=2, dim=64, heads=4)
    settings = {"batch_size": 32, "max_steps": 120, "lr": 3e-3, "eval_every": 40, "log_every": 5}
    Trainer(model, train_data, val_data, run_dir=run_dir, **settings).fit()


def train_clicks(data: Path, run_dir: Path) -> None:
    """Run the blocks of `recsys.md` up to its training."""
    del data  # the page makes its own
    page = (HERE / "recsys.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for language, body in re.findall(r"^```(python|bash)\n(.*?)^```$", page, re.M | re.S):
            if language == "python":
                exec(body, names)
                continue
            for words in map(shlex.split, body.splitlines()):
                if words[1] == "train":
                    run([*words[1:], "--run-dir", str(run_dir)])
                    return
                run(words[1:])


def photograph(report: Path, section: str, picture: Path, num_cards: int) -> None:
    """Take the first cards of a section of a report as a picture of at most 64 colours."""
    page = report.read_text(encoding="utf-8")
    begin = page.index(f'<section id="{section}"')
    part = page[begin : page.index("</section>", begin)]
    cards = re.split(r'(?=<(?:figure|div) class="card)', part)[1 : num_cards + 1]
    part = f"<div class=charts>{''.join(cards)}</div>"
    style = page[page.index("<style") : page.index("</style>") + len("</style>")]
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as folder:
        source, raw = Path(folder) / "part.html", Path(folder) / "raw.png"
        body = f"<body style='padding:16px'>{part}"
        source.write_text(f"<!doctype html><meta charset=utf-8>{style}{body}", encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={raw}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        shot = Image.open(raw).convert("RGB")
    paper = Image.new("RGB", shot.size, shot.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(shot, paper).getbbox() or (0, 0, *shot.size)
    box = (left - 8, top - 8, right + 8, bottom + 8)
    cut = shot.crop((max(0, box[0]), max(0, box[1]), min(shot.width, box[2]), min(800, box[3])))
    cut.quantize(64).save(picture, optimize=True)


def main() -> None:
    """Train what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("images_run", type=Path)
    parser.add_argument("text_run", type=Path)
    parser.add_argument("clicks_run", type=Path)
    args = parser.parse_args()
    runs = (
        (train_images, args.images_run),
        (train_text, args.text_run),
        (train_clicks, args.clicks_run),
    )
    for train, run_dir in runs:
        if not run_dir.exists():
            train(args.data.resolve(), run_dir.resolve())
    photograph(args.images_run / "report.html", "curves", HERE / "images_curves.png", 2)
    photograph(args.images_run / "report.html", "confusion", HERE / "images_confusion.png", 1)
    photograph(args.text_run / "report.html", "curves", HERE / "text_curves.png", 2)
    photograph(args.clicks_run / "report.html", "curves", HERE / "recsys_curves.png", 4)


if __name__ == "__main__":
    main()
