"""The classifier's sections: confusion matrix, scores per class, calibration."""

import math

import numpy as np

from deepseek.deploy.report.calibration import calibrate
from deepseek.deploy.report.confusion import (
    ClassScores,
    class_scores,
    confusion_matrix,
    most_confused,
)
from deepseek.deploy.report.markup import Section, bar, card, shorten, table, text
from deepseek.deploy.report.predictions import Predictions
from deepseek.deploy.report.quantity import percent
from deepseek.deploy.report.reliability import reliability_diagram
from deepseek.deploy.report.run_folder import RunFolder

MAX_MATRIX_CLASSES = 50
MAX_NUMBERED_CLASSES = 25
MAX_TABLE_CLASSES = 1000
NUM_PAIRS = 12
NUM_PAIRS_ALONE = 40


def class_sections(run: RunFolder) -> list[Section]:
    """Return the sections drawn from evaluation/predictions.safetensors."""
    parts = (
        ("confusion", "Confusion matrix", _confusion),
        ("classes", "Scores per class", _per_class),
        ("calibration", "Calibration", _calibration),
    )
    predictions = run.predictions
    if predictions is None:
        return [Section(id, title, reason=run.missing["predictions"]) for id, title, _ in parts]
    return [Section(id, title, draw(run, predictions)) for id, title, draw in parts]


def _confusion(run: RunFolder, predictions: Predictions) -> str:
    targets, predicted, num_classes = (
        predictions.targets, predictions.predicted, predictions.num_classes
    )  # fmt: skip
    num_wrong = int((targets != predicted).sum())
    summary = (
        f"{num_wrong:,} of {len(predictions):,} samples ({percent(num_wrong / len(predictions))})"
        " were taken for another class."
    )
    if predictions.num_unlabelled:
        summary += f" {predictions.num_unlabelled:,} without a label are left out."
    has_matrix = num_classes <= MAX_MATRIX_CLASSES
    if not has_matrix:
        summary += f" With {num_classes:,} classes the most confused pairs stand for the matrix."
    out = f"<p>{summary}</p>"
    if has_matrix:
        out += _heat_map(run, confusion_matrix(targets, predicted, num_classes))
    limit = NUM_PAIRS if has_matrix else NUM_PAIRS_ALONE
    pairs = most_confused(targets, predicted, num_classes, limit)
    rows = [
        (
            text(shorten(run.class_name(pair.target))),
            text(shorten(run.class_name(pair.predicted))),
            f"{pair.count:,}",
            bar(pair.share, percent(pair.share)),
        )
        for pair in pairs
    ]
    if rows:
        head = ("Target", "Predicted as", "Samples", "Share of target")
        pairs_table = table(head, rows, caption="Most confused pairs of classes", numeric=(2, 3))
        out += card("Most confused pairs", pairs_table)
    return out


def _heat_map(run: RunFolder, counts: np.ndarray) -> str:
    """Counts with the share of their row; hits and mistakes in two hues, stronger for more."""
    num_classes = len(counts)
    size = (
        "large"
        if num_classes <= 12
        else "medium"
        if num_classes <= MAX_NUMBERED_CLASSES
        else "small"
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [run.class_name(label) for label in range(num_classes)]
    head = "".join(
        f'<th scope="col" title="{text(name)}"><span>{text(shorten(name, 13))}</span></th>'
        for name in names
    )
    rows = []
    for target, name in enumerate(names):
        cells = [
            _cell(
                int(counts[target, guess]), float(shares[target, guess]), target, guess, names, size
            )
            for guess in range(num_classes)
        ]
        rows.append(
            f'<tr><th scope="row" title="{text(name)}">{text(shorten(name, 18))}'
            f"</th>{''.join(cells)}</tr>"
        )
    key = (
        '<p class="note">Rows are targets, columns predictions; colour is the share of the row:'
        ' <i class="swatch hit"></i> right, <i class="swatch miss"></i> wrong.</p>'
    )
    return (
        '<div class="card"><div class="scroll" tabindex="0" role="region"'
        ' aria-label="Confusion matrix">'
        f'<table class="heat {size}"><caption>Confusion matrix: rows are targets, columns'
        " predictions</caption>"
        f'<thead><tr><td class="corner">target \\ predicted</td>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>{key}</div>"
    )


def _cell(count: int, share: float, target: int, guess: int, names: list[str], size: str) -> str:
    if not count:
        return "<td></td>"
    kind = "hit" if target == guess else "miss"
    strong = " strong" if share > 0.45 else ""
    # The square root lets a class that is mistaken in 2 % of its samples be seen.
    tint = 100 * share if kind == "hit" else 100 * share**0.5
    if size == "small":
        label = f'<span class="hidden">{count}</span>'
    else:
        label = f"{count:,}" + (f"<small>{percent(share)}</small>" if size == "large" else "")
    title = (
        f"{shorten(names[target], 30)} → {shorten(names[guess], 30)}: {count:,} ({percent(share)})"
    )
    return (
        f'<td class="{kind}{strong}" style="--tint:{tint:.0f}%" title="{text(title)}">{label}</td>'
    )


def _per_class(run: RunFolder, predictions: Predictions) -> str:
    scores = class_scores(predictions.targets, predictions.predicted, predictions.num_classes)
    order = np.arange(predictions.num_classes)
    note = ""
    if len(order) > MAX_TABLE_CLASSES:
        order = np.argsort(scores.f1, kind="stable")[:MAX_TABLE_CLASSES]
        note = (
            f'<p class="note">The {MAX_TABLE_CLASSES:,} classes with the lowest F1'
            f" of {predictions.num_classes:,}.</p>"
        )
    rows = [_score_row(run, scores, int(label)) for label in order]
    total = f"{len(predictions):,}"
    foot = [
        (name, *(percent(value) for value in averages), total, total)
        for name, averages in (
            ("Macro average", scores.macro()),
            ("Weighted average", scores.weighted()),
        )
    ]
    head = ("Class", "Precision", "Recall", "F1", "Support", "Predicted")
    return (
        '<div class="card">'
        + table(head, rows, caption="Scores per class; a column name sorts by it",
                numeric=(1, 2, 3, 4, 5), is_sortable=True, foot=foot)
        + f'</div>{note}<p class="note">Support: samples of the class; Predicted: samples taken'
        " for it. Press a column name to sort.</p>"
    )  # fmt: skip


def _score_row(run: RunFolder, scores: ClassScores, label: int) -> tuple[str, ...]:
    cells = [
        bar(float(values[label]), percent(float(values[label])))
        for values in (scores.precision, scores.recall, scores.f1)
    ]
    name = text(shorten(run.class_name(label)))
    return (name, *cells, f"{scores.support[label]:,}", f"{scores.predicted[label]:,}")


def _lean(confidence: float, accuracy: float, num_samples: int) -> str:
    """Say whether confidence and accuracy differ by more than two standard errors."""
    error = math.sqrt(accuracy * (1 - accuracy) / max(num_samples, 1))
    if abs(confidence - accuracy) <= 2 * error:
        return "well calibrated, within chance"
    return "overconfident" if confidence > accuracy else "underconfident"


def _calibration(run: RunFolder, predictions: Predictions) -> str:
    result = calibrate(predictions.confidence, predictions.targets == predictions.predicted)
    accuracy = float((predictions.targets == predictions.predicted).mean())
    confidence = float(predictions.confidence.mean())
    lean = _lean(confidence, accuracy, len(predictions.targets))
    filled = np.flatnonzero(result.count)
    rows = [
        (
            f"{percent(result.edges[at], 0)} to {percent(result.edges[at + 1], 0)}",
            f"{result.count[at]:,}",
            percent(float(result.confidence[at])),
            percent(float(result.accuracy[at])),
        )
        for at in filled
    ]
    head = ("Confidence", "Samples", "Mean confidence", "Accuracy")
    return (
        '<div class="split"><div class="card"><h3>Reliability diagram</h3>'
        f"{reliability_diagram(result)}</div>"
        f'<div><p class="verdict"><b>ECE {percent(result.ece, 2)}</b> <span>largest gap'
        f" {percent(result.mce)}</span></p>"
        f"<p>Mean confidence {percent(confidence)}, accuracy {percent(accuracy)}: on the"
        f" whole {lean}."
        " Bars on the diagonal mean that a prediction made with 80&#8239;% confidence is"
        " right in 80&#8239;% of cases.</p>"
        f"{table(head, rows, caption='Reliability diagram in numbers', numeric=(1, 2, 3))}"
        f'<p class="note">{len(result.count)} bins of the top probability. Guo, Pleiss,'
        " Sun, Weinberger,"
        " On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.</p></div></div>"
    )
