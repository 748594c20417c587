"""Draw the pictures of the tutorials: sections of reports, taken by a Chromium on the path.

    python docs/tutorials/make_pictures.py DATA WORK [PAGE...]

`DATA` holds `flowers5/` (class folders of photographs) and `tinyshakespeare/input.txt`; all else is
made up by the pages. Every page (`images`, `text`, ...) works in a folder of `WORK`; reports that
are there already are drawn again without training.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from PIL import Image, ImageChops

from deepseek import Trainer
from deepseek.cli.main import run
from deepseek.datasets import TextDataset
from deepseek.medical import make_phantom, write_phantom
from deepseek.models import GPT

HERE = Path(__file__).parent
NUM_PHOTOGRAPHS = 120  # of each kind
BLOCK = re.compile(r"(?:^(<!-- [^\n]+ -->)\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S)


def make_images(data: Path) -> None:
    """Train as `images.md` does, for longer."""
    for kind in sorted(path for path in (data / "flowers5").iterdir() if path.is_dir()):
        Path("flowers", kind.name).mkdir(parents=True)
        for photograph in sorted(kind.iterdir())[:NUM_PHOTOGRAPHS]:
            Path("flowers", kind.name, photograph.name).symlink_to(photograph.resolve())
    command("init images --data flowers")
    command(
        "train model.architecture=resnet20 data.transform=resize_56+random_crop_48+hflip"
        " data.num_workers=0 trainer.epochs=10"
    )


def make_text(data: Path) -> None:
    """Train as `text.md` does."""
    text = data / "tinyshakespeare" / "input.txt"
    train_data, val_data = TextDataset(text, tokenizer="characters", sequence_length=64).split(0.1)
    model = GPT(context_length=64, num_layers=2, dim=64, heads=4)
    settings = {"batch_size": 32, "max_steps": 120, "lr": 3e-3, "eval_every": 40, "log_every": 5}
    Trainer(model, train_data, val_data, run_dir="runs/text-1", **settings).fit()


def make_recsys(data: Path) -> None:
    """Run the blocks of `recsys.md` up to its training."""
    run_page("recsys", "train")


def make_finance(data: Path) -> None:
    """Run the blocks of `finance.md` up to its mistakes, of a model that is not done yet."""
    run_page("finance", "explain", "trainer.epochs=4")


def make_medical(data: Path) -> None:
    """Train the detector of `medical.md` on more phantoms, and for longer."""
    sizes = (40, 60, 60), (2.0, 2.0, 2.0)
    for number in range(40):
        phantom = make_phantom(*sizes, num_nodules=1, seed=number)
        write_phantom(phantom, "luna16", f"chest-{number}", "luna16")
    for number in range(6):
        phantom = make_phantom(*sizes, num_nodules=2, seed=100 + number)
        write_phantom(phantom, "scans", f"scan-{number}", "dicom")
    Path("nodules.yaml").write_text("""
name: nodules
data: {format: nodules, train: luna16, cube_voxels: 32, transform: patch_24x24x24+flip}
model: {architecture: center_detector3d, args: {features: [8, 16, 16], blocks: 1}}
trainer: {time_budget: 150s, batch_size: 4, lr: 3e-3}
""")
    command("train nodules.yaml data.num_workers=0")
    command(
        "predict runs/nodules-1/model.bin scans --region lungs --min-score 0.001"
        " --output findings --report findings.html"
    )


def make_cluster(data: Path) -> None:
    """Plan as `cluster.md` does."""
    command("plan llama2-7b --gpus 64 --gpu h100 --tokens 300B --price 2.5 --html plan.html")


def make_edge(data: Path) -> None:
    """Train as `edge.md` does, and search."""
    run_page("edge", "export")
    command("optimize runs/edge-1/model.bin --data digits --tolerance 1% --budget 3m --out edge")


def command(words: str | list[str]) -> None:
    """Run a command of deepseek; one that fails ends the program."""
    if (code := run(shlex.split(words) if isinstance(words, str) else words)) != 0:
        raise SystemExit(code)


def run_page(name: str, last: str, *settings: str) -> None:
    """Run the blocks of a page up to its first command `last`.

    Args:
        name: of the page, without `.md`.
        last: name of the command.
        settings: for the trainings.
    """
    names: dict[str, object] = {}
    for mark, language, body in BLOCK.findall((HERE / f"{name}.md").read_text(encoding="utf-8")):
        if mark:
            continue
        if language == "python":
            exec(body, names)
            continue
        for words in map(shlex.split, body.replace("\\\n", " ").splitlines()):
            command([*words[1:], *(settings if words[1] == "train" else ())])
            if words[1] == last:
                return


def photograph(report: Path, section: str, picture: Path, cards: slice) -> None:
    """Take cards of a section of a report as a PNG of at most 64 colours, or a JPEG.

    Args:
        report: the page.
        section: its `id`, or its title.
        picture: file to write.
        cards: which ones; of a scan its three views alone.
    """
    page = report.read_text(encoding="utf-8")
    sections = re.findall(r"<section.*?</section>", page, re.S)
    marks = f'<section id="{section}"', f"<section><h2>{section}<"
    part = next(part for part in sections if part.startswith(marks))
    parts = re.split(r'(?=<(?:figure|div|article) class="card)', part)[1:][cards]
    part = f"<div class=charts>{''.join(parts)}</div>"
    if parts[0].startswith("<article"):
        slices = re.findall(r'<article.*?<div class="slices">.*?</div>', parts[0], re.S)
        part = f"{slices[0]}</article>"
    style = page[page.index("<style") : page.index("</style>") + len("</style>")]
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as folder:
        source, raw = Path(folder) / "part.html", Path(folder) / "raw.png"
        body = f"<body style='padding:16px'>{part}"
        source.write_text(f"<!doctype html><meta charset=utf-8>{style}{body}", encoding="utf-8")
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [
            "--window-size=1000,800",
            f"--user-data-dir={folder}/profile",
            f"--screenshot={raw}",
            source.as_uri(),
        ]
        subprocess.run(words, check=True, capture_output=True)
        shot = Image.open(raw).convert("RGB")
    paper = Image.new("RGB", shot.size, shot.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(shot, paper).getbbox() or (0, 0, *shot.size)
    box = (left - 8, top - 8, right + 8, bottom + 8)
    cut = shot.crop((max(0, box[0]), max(0, box[1]), min(shot.width, box[2]), min(800, box[3])))
    if picture.suffix == ".jpg":
        cut.save(picture, quality=85)
    else:
        cut.quantize(64).save(picture, optimize=True)


PAGES: dict[str, Callable[[Path], None]] = {
    "images": make_images,
    "text": make_text,
    "recsys": make_recsys,
    "medical": make_medical,
    "finance": make_finance,
    "cluster": make_cluster,
    "edge": make_edge,
}
FIRST, BOTH, LAST = slice(1), slice(2), slice(-1, None)
PICTURES = (  # page, report, section, picture, cards
    ("images", "runs/images-1/report.html", "curves", "images_curves.png", BOTH),
    ("images", "runs/images-1/report.html", "confusion", "images_confusion.png", FIRST),
    ("text", "runs/text-1/report.html", "curves", "text_curves.png", BOTH),
    ("recsys", "runs/clicks-1/report.html", "curves", "recsys_curves.png", slice(4)),
    ("medical", "findings.html", "scores", "medical_scores.png", BOTH),
    ("medical", "findings.html", "scans", "medical_scan.jpg", LAST),
    ("finance", "mistakes.html", "mistakes", "finance_mistakes.png", BOTH),
    ("cluster", "plan.html", "Scaling", "cluster_scaling.png", BOTH),
    ("edge", "edge/report.html", "front", "edge_front.png", BOTH),
)


def main() -> None:
    """Make what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(PAGES))
    args = parser.parse_args()
    if unknown := set(args.pages) - set(PAGES):
        parser.error(f"no such page: {', '.join(sorted(unknown))}")
    for page, report, section, picture, cards in PICTURES:
        if args.pages and page not in args.pages:
            continue
        folder = args.work.resolve() / page
        if not (folder / report).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with chdir(folder):
                PAGES[page](args.data.resolve())
        photograph(folder / report, section, HERE / picture, cards)


if __name__ == "__main__":
    main()
