"""What a page says of how good a model is, where labels or findings are known.

Papers: Setio et al. 2017, arXiv 1612.08012 (FROC, CPM); Guo et al. 2017, arXiv 1706.04599
(calibration).
"""

from collections.abc import Sequence

import numpy as np

from deepseek.deploy.report.calibration import calibrate
from deepseek.deploy.report.chart import Point, scatter_chart
from deepseek.deploy.report.markup import Section, card, table, text
from deepseek.deploy.report.quantity import Unit, percent
from deepseek.deploy.report.reliability import reliability_diagram
from deepseek.medical.froc import RATES, Froc
from deepseek.medical.scan_findings import match_rows
from deepseek.trainer.bootstrap import bootstrap_interval

SIZES_MM = ((0.0, 6.0), (6.0, 8.0), (8.0, 15.0), (15.0, np.inf))
"""From which to below which diameter findings are counted together, as Lung-RADS divides them."""
NUM_BINS = 10
_RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def score_sections(rows: Sequence[dict], class_names: Sequence[str]) -> list[Section]:
    """Return the sections of what could be scored; none where nothing is known.

    Args:
        rows: as `predict_scans` yields them, without errors.
        class_names: of class 0, 1, ...; of a segmenter.
    """
    sections = []
    labelled = [row for row in rows if "dice" in row]
    if labelled:
        sections.append(_segmentation(labelled, class_names[1:]))
    froc = match_rows(rows)
    if froc is not None:
        sections.append(_detection(froc, [row for row in rows if "known" in row]))
    return sections


def _segmentation(rows: Sequence[dict], names: Sequence[str]) -> Section:
    lines = []
    for name in names:
        cells = [text(name)]
        for score, digits in (("dice", 3), ("hausdorff95_mm", 2)):
            values = [row[score][name] for row in rows if row[score][name] is not None]
            cells += [str(len(values)), _interval(values, digits)]
        lines.append(cells)
    head = ("Class", "Scans", "Dice (95 %)", "Scans", "Hausdorff 95 %, mm (95 %)")
    body = card(
        "Each class",
        table(head, lines, caption="Scores of each class", numeric=(1, 2, 3, 4))
        + '<p class="note">Means over scans, with 95 % intervals of scans drawn anew. A class that'
        " is neither there nor found has no Dice, and without either no distance.</p>",
    )
    head = ("Scan", *(f"Dice {name}" for name in names), *(f"HD95 {name}, mm" for name in names))
    listed = sorted(rows, key=mean_dice)
    cells = [
        [
            text(row["scan"]),
            *(_number(row["dice"][name], 3) for name in names),
            *(_number(row["hausdorff95_mm"][name], 1) for name in names),
        ]
        for row in listed
    ]
    numeric = range(1, 2 * len(names) + 1)
    body += card(
        "Each scan, the worst first",
        table(head, cells, caption="Scores of each scan", numeric=numeric, is_sortable=True),
    )
    return Section("scores", "Scores", body)


def mean_dice(row: dict) -> float:
    """Return the mean over classes that have one; 1 where none has."""
    values = [value for value in row["dice"].values() if value is not None]
    return float(np.mean(values)) if values else 1.0


def _detection(froc: Froc, rows: Sequence[dict]) -> Section:
    cpm, each = froc.intervals()
    points = [
        Point(rate, found.value, percent(found.value, 0),
              f"{name} false marks a scan: {found}", "sensitivity, with its 95 % interval",
              interval=(found.low, found.high) if found.low == found.low else None)
        for rate, name, found in zip(RATES, _RATE_NAMES, each, strict=True)
    ]  # fmt: skip
    rates = np.geomspace(RATES[0], RATES[-1], 200)
    chart = scatter_chart(
        points, title="FROC: sensitivity and false marks", x_name="false marks a scan",
        summary=f"CPM {cpm}, the mean over 1/8 to 8 false marks a scan;"
        f" {froc.num_findings} findings in {froc.num_scans} scans.",
        unit=Unit("%", 100.0), is_log=True, least_top=1.0,
        line=list(zip(rates.tolist(), froc.sensitivity(rates.tolist()).tolist(), strict=True)),
    )  # fmt: skip
    lines = [
        [name, percent(found.value), f"{percent(found.low)} to {percent(found.high)}"]
        for name, found in zip(_RATE_NAMES, each, strict=True)
    ]
    head = ("False marks a scan", "Sensitivity", "95 %")
    side = card("Sensitivity", table(head, lines, caption="Sensitivity", numeric=(1, 2)))
    side += card("Of each size, at 1 false mark a scan", _sizes(froc, rows))
    body = f'<div class="split"><div>{chart}{_calibration(rows)}</div><div>{side}</div></div>'
    body += (
        '<p class="note">A mark hits a finding within its radius, as LUNA16 has it; further marks'
        " on it count neither way. Marks below the least score are not counted, so the curve may"
        " end before 8.</p>"
    )
    return Section("scores", "Scores", body)


def _sizes(froc: Froc, rows: Sequence[dict]) -> str:
    least = froc.threshold(1.0)
    known = [each for row in rows for each in row["known"] if not each["is_excluded"]]
    lines = []
    for low, high in SIZES_MM:
        those = [each for each in known if low <= each["diameter_mm"] < high]
        hit = sum(each["score"] is not None and each["score"] >= least for each in those)
        name = f"{low:g} to {high:g} mm" if np.isfinite(high) else f"{low:g} mm and more"
        share = percent(hit / len(those)) if those else "–"
        lines.append([name, str(len(those)), str(hit), share])
    head = ("Diameter", "Findings", "Found", "Sensitivity")
    return table(head, lines, caption="Sensitivity of each size", numeric=(1, 2, 3))


def _calibration(rows: Sequence[dict]) -> str:
    said = [each for row in rows for each in row["findings"] if each["is_hit"] is not None]
    if not said:
        return ""
    scores = np.array([each["score"] for each in said])
    result = calibrate(scores, np.array([each["is_hit"] for each in said], bool), NUM_BINS)
    words = text(
        f"Expected calibration error {percent(result.ece)}, of {len(said):,} marks: does a mark"
        " with score p hit a finding in a share p of the cases?"
    )
    return card(
        "Calibration of scores", f'{reliability_diagram(result)}<p class="note">{words}</p>'
    )


def _interval(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    found = bootstrap_interval(np.array(values))
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
