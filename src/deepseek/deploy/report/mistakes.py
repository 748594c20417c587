"""The page of a classifier's mistakes: how many, which classes, the surest ones, and the words.

Shapes: N samples, K classes, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.deploy.report.classes import class_sections
from deepseek.deploy.report.confusion import class_scores
from deepseek.deploy.report.markup import Section, card, shorten, text
from deepseek.deploy.report.page import assemble_page
from deepseek.deploy.report.predictions import Predictions
from deepseek.deploy.report.quantity import percent
from deepseek.deploy.report.run_folder import RunFolder
from deepseek.version import __version__
from deepseek.whole_file import replacing

STYLE = (
    "padding:0 .12em;border-radius:3px;background:color-mix(in srgb, var({}) {:.0f}%, var(--card))"
)
MAX_WORDS = 300


@dataclass(frozen=True)
class Explained:
    """One sample.

    Attributes:
        index: its number in the data.
        words: what it is made of; a text without parts is one word.
        weights: what each word adds to the class that was found, against the right one (of a right
            sample against all others); empty where nothing was attributed.
        target: number of the right class.
        predicted: number of the class that was found.
        prob: its probability, 0..1.
    """

    index: int
    words: Sequence[str]
    weights: Sequence[float]
    target: int
    predicted: int
    prob: float


def write_mistakes(
    path: Path,
    title: str,
    probs: np.ndarray,
    targets: np.ndarray,
    class_names: Sequence[str],
    mistakes: Sequence[Explained],
    right: Sequence[Explained],
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, in one move, and return its path.

    Args:
        path: of the `.html` file.
        title: what was tested on what.
        probs: of the classes, (N, K).
        targets: right classes, (N,).
        class_names: K names.
        mistakes: the surest ones, first the surest.
        right: right answers of each class, for comparison.
        notes: lines under the figures, plain text.
    """
    predicted = probs.argmax(1)
    confidence = np.minimum(probs.max(1).astype(np.float64), 1.0)
    predictions = Predictions(targets.astype(np.int64), predicted, confidence, probs.shape[1])
    run = RunFolder(path, predictions=predictions, class_names=tuple(class_names))
    sections = [
        _summary(predictions, notes),
        *class_sections(run),
        _examples("mistakes", "The surest mistakes", mistakes, run, "there are no mistakes."),
        _examples("right", "Right answers", right, run, "there are none."),
    ]
    head = (
        '<header><p class="kicker">deepseek error analysis</p>'
        f'<h1>{text(shorten(title, 80))}</h1><p class="lead">{len(predictions):,} samples,'
        f" {probs.shape[1]} classes</p></header>"
    )
    page = assemble_page(
        f"{shorten(title)} · error analysis", head, sections, f"Written by deepseek {__version__}."
    )
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def _summary(predictions: Predictions, notes: Sequence[str]) -> Section:
    scores = class_scores(predictions.targets, predictions.predicted, predictions.num_classes)
    wrong = predictions.targets != predictions.predicted
    sure = wrong & (predictions.confidence > 0.9)
    tiles = (
        ("Accuracy", percent(float(1 - wrong.mean())), ""),
        ("Macro F1", percent(float(scores.macro()[2])), ""),
        ("Mistakes", f"{int(wrong.sum()):,}", f"of {len(predictions):,}"),
        ("Sure mistakes", f"{int(sure.sum()):,}", "above 90 % confidence"),
    )
    body = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(place)}</small></dd></div>"
        for name, value, place in tiles
    )
    lines = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    return Section("summary", "Summary", f'<dl class="tiles">{body}</dl>{lines}')


def _examples(
    id: str, title: str, samples: Sequence[Explained], run: RunFolder, reason: str
) -> Section:
    if not samples:
        return Section(id, title, reason=reason)
    key = ""
    if any(sample.weights for sample in samples):
        key = (
            f'<p class="note"><span style="{STYLE.format("--accent", 45)}">blue</span> words spoke'
            f' for the answer, <span style="{STYLE.format("--miss", 45)}">orange</span> ones'
            " against it (integrated gradients, arXiv 1703.01365).</p>"
        )
    return Section(id, title, key + "".join(_example(sample, run) for sample in samples))


def _example(sample: Explained, run: RunFolder) -> str:
    found, wanted = run.class_name(sample.predicted), run.class_name(sample.target)
    is_right = sample.predicted == sample.target
    verdict = f"{found} {percent(sample.prob)}" + ("" if is_right else f", but it is {wanted}")
    strongest = max((abs(weight) for weight in sample.weights), default=0.0) or 1.0
    parts = []
    for number, word in enumerate(sample.words[:MAX_WORDS]):
        if not sample.weights:
            parts.append(text(word))
            continue
        weight = sample.weights[number]
        color = "--accent" if weight > 0 else "--miss"
        style = STYLE.format(color, 70 * abs(weight) / strongest)
        parts.append(f'<span style="{style}" title="{weight:+.3f}">{text(word)}</span>')
    rest = " …" if len(sample.words) > MAX_WORDS else ""
    return card(f"{verdict} (sample {sample.index:,})", f"<p>{' '.join(parts)}{rest}</p>")
