"""Writes `docs/commands/`: a page for each command, with its options and what it really prints.

    python tools/command_pages.py                  # options anew, examples as they are
    python tools/command_pages.py --run            # runs every example, too: minutes
    python tools/command_pages.py --run train plan # runs those of two commands

Examples run in one empty folder, in the order below, in this process; what a command starts is
captured as well.
"""

import argparse
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer
import typer.models

from deepseek.cli.main import app, run

ROOT = Path(__file__).absolute().parents[1]
PAGES = ROOT / "docs" / "commands"
EXAMPLE = "## Example"
MAX_LINES = 40
WIDTH = 100


@dataclass(frozen=True)
class Example:
    """What the page of a command shows.

    Attributes:
        commands: shown with their output; a last one that ends with `&` runs until it has said
            where it listens.
        guide: page that explains, with its title.
        before: commands that are run and not shown; they may be those of an earlier page.
        keep: lines of output, at most.
    """

    commands: tuple[str, ...]
    guide: str
    before: tuple[str, ...] = ()
    keep: int = MAX_LINES


DIGITS = ("init digits --force", "train trainer.epochs=2")
MODEL = "runs/digits-1/model.bin"
TONE = (
    "init sentences --data tone.csv --output tone.yaml --force",
    "train tone.yaml model.architecture=encoder_tiny trainer.epochs=8 --run-dir runs/tone-1",
)
EXAMPLES = {
    "init": Example(("init digits",), "[Configuration](../config.md)"),
    "train": Example(DIGITS[1:], "[Training](../trainer.md)", DIGITS[:1], keep=60),
    "evaluate": Example(
        (f"evaluate {MODEL} --data digits",), "[Command line](../cli.md#many-samples)", DIGITS
    ),
    "predict": Example(
        (f"predict {MODEL} runs/digits-1/evaluation/samples --top-k 2",),
        "[Command line](../cli.md#many-samples)",
        DIGITS,
        keep=12,
    ),
    "convert": Example(
        ("convert resnet.safetensors resnet.bin --verify",), "[Convert](../convert.md)"
    ),
    "export": Example(
        (f"export {MODEL} digits.pt2 --data digits",), "[Export](../export.md)", DIGITS
    ),
    "features": Example(
        ("features clicks.csv --label click",), "[Recommendation](../recsys.md#the-feature-spec)"
    ),
    "quantize": Example(
        (f"quantize {MODEL} small.bin --scheme bf16 --data digits",),
        "[Fewer bits](../quantize.md)",
        DIGITS,
    ),
    "generate": Example(
        ("generate runs/text-1/model.bin 'the cat' --max-new-tokens 50 --temperature 0.5",),
        "[Text](../text.md)",
        (
            "init text --data rhyme.txt --output text.yaml --force",
            "train text.yaml data.tokenizer=characters data.sequence_length=64 trainer.lr=3e-3 "
            "model.args.context_length=64 model.args.dim=64 trainer.epochs=40 "
            "trainer.max_steps=200 --run-dir runs/text-1",
        ),
    ),
    "prune": Example(
        (f"prune {MODEL} half.bin --flops 50% --data digits --epochs 1",),
        "[Pruning](../prune.md)",
        DIGITS,
    ),
    "serve": Example((f"serve {MODEL} &",), "[Service](../serve.md)", DIGITS),
    "explain": Example(
        ("explain runs/tone-1/model.bin --data tone.csv",),
        "[Fine-tuning](../fine_tuning.md#mistakes)",
        TONE,
    ),
    "calibrate": Example(
        (f"calibrate {MODEL} calibrated.bin --data digits",),
        "[Fine-tuning](../fine_tuning.md#probabilities-that-come-true)",
        DIGITS,
    ),
    "report": Example(("report digits-1",), "[Report](../report.md)", DIGITS),
    "optimize": Example(
        (
            f"optimize {MODEL} --data digits --budget 3m --runtime eager --runtime exported "
            "--max-samples 128",
        ),
        "[The best way to run it](../optimize.md)",
        DIGITS,
    ),
    "lr-range": Example(
        ("lr-range --steps 30",),
        "[Training](../trainer.md#which-learning-rate-and-where-the-time-goes)",
        DIGITS[:1],
    ),
    "verify-resume": Example(
        ("verify-resume --steps 6 --kills 1",), "[Guarantees](../guarantees.md)", DIGITS[:1]
    ),
    "chaos": Example(
        ("chaos --steps 5 --trials 1 --only flipped-bits,bad-numbers",),
        "[Guarantees](../guarantees.md#how-it-is-tested)",
        DIGITS[:1],
    ),
    "launch": Example(
        ("launch --nproc 2 --dry-run train model_config.yaml trainer.epochs=3",),
        "[Launch](../launch.md)",
        DIGITS[:1],
    ),
    "doctor": Example(("doctor",), "[Doctor](../doctor.md)", keep=30),
    "plan": Example(
        ("plan llama2-7b --gpus 8 --gpu h100 --tokens 300B --price 2.5",),
        "[Plan](../plan.md)",
        keep=50,
    ),
    "runs": Example(
        ("runs", "runs compare digits-1 digits-2"),
        "[Command line](../cli.md)",
        (*DIGITS, "train trainer.epochs=1 trainer.lr=5e-4 --run-dir runs/digits-2"),
    ),
    "config": Example(
        ("config check trainer.epochs=5",), "[Configuration](../config.md)", DIGITS[:1], keep=30
    ),
    "bench": Example(("bench --budget 1m",), "[Bench](../bench.md)", keep=40),
    "reproduce": Example(("reproduce",), "[Reproduced papers](../reproduce.md)"),
    "version": Example(("version",), "[Install](../install.md)"),
    "online": Example(
        ("online serve online.yaml --port 0 &", "online status online.yaml"),
        "[Online learning](../online.md)",
        ("train clicks.yaml",),
    ),
    "finance": Example(
        ("finance grow-vocabulary runs/tone-1/model.bin grown --corpus news.txt --max-terms 20",),
        "[Text of finance](../finance.md)",
        TONE,
    ),
}


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="*", metavar="COMMAND", help="run examples: these, or all")
    chosen = parser.parse_args().run
    PAGES.mkdir(exist_ok=True)
    for name, options in option_parts():
        write_page(name, options, example_part(PAGES / f"{name}.md"))
    if chosen is not None:
        parts = dict(option_parts())
        for name, example in run_examples(chosen or list(EXAMPLES)):
            write_page(name, parts[name], example)
            print(name, flush=True)


def write_page(name: str, options: str, example: str) -> None:
    """Write the page of a command."""
    text = f"{options}\n{example}" if example else options
    (PAGES / f"{name}.md").write_text(text, encoding="utf-8")


def option_parts() -> Iterator[tuple[str, str]]:
    """Yield the name of each command and the part of its page that its function decides."""
    for name, lines in sorted(described_commands(app, "deepseek", "#")):
        guide = EXAMPLES[name].guide if name in EXAMPLES else "[Command line](../cli.md)"
        yield name, "\n".join([*lines, f"More: {guide}.", ""])


def described_commands(group: typer.Typer, path: str, heading: str) -> Iterator:
    """Yield name and lines of each command of a group, and of the groups in it."""
    for info in group.registered_commands:
        yield info.name, described(f"{path} {info.name}", info.callback, heading)
    for info in group.registered_groups:
        below = info.typer_instance
        callback = below.registered_callback and below.registered_callback.callback
        lines = described(f"{path} {info.name}", callback, heading, below.info.help)
        for _, more in described_commands(below, f"{path} {info.name}", f"{heading}#"):
            lines += more
        yield info.name, lines


def described(path: str, function, heading: str, about: str | None = None) -> list[str]:
    """Return the lines on one command; a group of others has what it is about, or a function."""
    parameters = list(parameters_of(function)) if function else []
    arguments = [each.usage for each in parameters if each.is_argument]
    words = [path, *(["[OPTIONS]"] if len(arguments) < len(parameters) else []), *arguments]
    about = about if isinstance(about, str) else inspect.getdoc(function) or ""
    lines = [f"{heading} {path}", "", " ".join(about.split()), ""]
    if function:
        lines += ["```text", " ".join(words), "```", ""]
    if parameters:
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        lines += [each.row() for each in parameters] + [""]
    return lines


def parameters_of(function) -> Iterator["Parameter"]:
    """Yield what a command takes, in its order."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        for info in getattr(hints[name], "__metadata__", ()):
            yield Parameter(name, parameter.default, hints[name].__origin__, info)


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command.

    Attributes:
        name: of the function's parameter.
        default: likewise; `inspect.Parameter.empty` where it is required.
        kind: its type.
        info: what typer is told of it.
    """

    name: str
    default: object
    kind: Any
    info: Any

    @property
    def is_argument(self) -> bool:
        """Whether it is known by its place."""
        return isinstance(self.info, typer.models.ArgumentInfo)

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def usage(self) -> str:
        """How an argument stands on the command line."""
        if self.info.metavar:
            return self.info.metavar
        name = self.name.upper() + ("..." if "list" in str(self.kind) else "")
        return name if self.is_required else f"[{name}]"

    def row(self) -> str:
        """Return its line in the table."""
        default = self.default
        is_shown = not (self.is_required or default is None or isinstance(default, bool))
        shown = "required" if self.is_required else f"`{default}`" if is_shown else ""
        meaning = " ".join((self.info.help or "").split()) + self.limits
        plain = re.sub(r"([*_<>|])", r"\\\1", meaning)
        what = f"`{self.usage}`" if self.is_argument else self.spelling
        return f"| {what} | {shown} | {plain} |"

    @property
    def spelling(self) -> str:
        """How an option is written, with the word that stands for its value."""
        given = (self.info.default, *(self.info.param_decls or ()))  # typer puts the first there
        names = [word for each in given if isinstance(each, str) for word in each.split("/")]
        plain = "--" + self.name.replace("_", "-")
        is_flag = self.kind is bool
        if not names:
            names = [plain, "--no-" + plain.removeprefix("--")] if is_flag else [plain]
        kinds = {"int": "N", "float": "X", "Path": "PATH"}
        found = re.search(r"int|float|Path", str(self.kind))
        value = self.info.metavar or (kinds[found[0]] if found else "TEXT")
        gap = "" if is_flag else " "
        if is_flag or value.startswith("["):
            gap, value = "", "" if is_flag else value
        return ", ".join(f"`{word}{gap}{value}`" for word in names)

    @property
    def limits(self) -> str:
        """The range of a number, in words."""
        low, high = self.info.min, self.info.max
        if low is not None and high is not None:
            return f" From {low} to {high}."
        return f" At least {low}." if low is not None else ""


def example_part(path: Path) -> str:
    """Return what a page has from its example on."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    return text[text.index(EXAMPLE) :] if EXAMPLE in text else ""


def run_examples(names: list[str]) -> Iterator[tuple[str, str]]:
    """Run the examples of some commands; yield the last part of the page of each."""
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    done: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSEEK_CACHE"] = f"{folder}/cache"
        os.environ["XDG_DATA_HOME"] = f"{folder}/data_home"
        os.chdir(folder)
        make_inputs()
        for name in EXAMPLES:
            if name in names:
                yield name, run_example(EXAMPLES[name], folder, done)
        os.chdir(PAGES)


def run_example(example: Example, folder: str, done: set[str]) -> str:
    """Return the last part of a page; what is in `done` need not be run before."""
    for command in example.before:
        if command not in done:
            output(command)
    done |= {*example.before, *example.commands}
    blocks = []
    for command in example.commands:
        text = serve(command) if command.endswith("&") else output(command)
        blocks.append(f"$ deepseek {command.removesuffix(' &')}")
        blocks += trimmed(text, folder, example.keep)
    body = "\n".join(blocks)
    return f"{EXAMPLE}\n\n```console\n{body}\n```\n"


def make_inputs() -> None:
    """Write the files that examples read."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    Path("reproduce").symlink_to(ROOT / "reproduce")
    torch.manual_seed(0)
    save_file(resnet18(num_classes=10).state_dict(), "resnet.safetensors")
    Path("rhyme.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 200)
    moods = [("rose", "good"), ("fell", "bad")]
    what = ["profit", "sales", "the share", "demand", "income", "output"]
    rows = [
        f"{thing} {verb} by {n} percent,{mood}"
        for n in range(2, 12)
        for thing in what
        for verb, mood in moods
    ]
    Path("tone.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    clicks = [f"u{n % 17},{'abcd'[n % 4]},{n % 50 / 10},{int(n % 3 == 0)}" for n in range(300)]
    Path("clicks.csv").write_text("\n".join(["user_id,genre,price,click", *clicks]) + "\n")
    Path("clicks.yaml").write_text(
        "name: clicks\ndata: {format: table, train: clicks.csv, labels: [click]}\n"
        "model: {architecture: logistic_regression}\ntrainer: {epochs: 2}\n"
    )
    Path("online.yaml").write_text(
        "model: runs/clicks-1/model.bin\nfolder: online\n"
        "join: {labels: {click: {event: click, window: 10m}}}\n"
    )
    Path("news.txt").write_text(
        "\n".join(f"$NVDA rose by {n}.5% in the quarter https://t.co/a{n}" for n in range(40))
    )


def output(command: str) -> str:
    """Run a command in this process; return what it and its children print."""
    sys.stdout.flush()
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            code = run(shlex.split(command))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)
        file.seek(0)
        text = file.read().decode()
    if code and not command.startswith("doctor"):
        raise SystemExit(f"deepseek {command}: exit code {code}\n{text}")
    return text


def serve(command: str) -> str:
    """Start a service, and end it once it says where it listens."""
    words = [sys.executable, "-m", "deepseek.cli.main", *command.removesuffix("&").split()]
    found = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as it:
        for line in it.stdout or ():
            found.append(line)
            if "http://" in line:
                break
        it.send_signal(signal.SIGINT)
    return "".join(found)


def trimmed(text: str, folder: str, keep: int) -> list[str]:
    """Return the lines of an output, without this machine's paths, cut to `keep`."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{folder}/", "").replace(folder, ".")
    text = text.replace(sys.executable, "python")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().splitlines()]
    if len(lines) > keep:
        return [*lines[: keep - 1], "..."]
    return lines


if __name__ == "__main__":
    main()
