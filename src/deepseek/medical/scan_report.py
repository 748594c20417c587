"""A page of what was found in scans: pictures of each, findings, amounts, and scores where known.

One HTML file, without network references. It shows the voxels of the scans: it belongs where they
belong. Pictures are drawn as scans are done, so that no scan is kept.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.datasets.spec import DataSpec
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.deploy.report.markup import Section, bar, shorten, table, text
from deepseek.deploy.report.page import assemble_page
from deepseek.deploy.report.quantity import number
from deepseek.medical.calibration import VoxelCalibration, calibration_section
from deepseek.medical.nodule_cubes import SCORES
from deepseek.medical.scan_findings import finding_scores
from deepseek.medical.score_sections import mean_dice, score_sections
from deepseek.medical.slice_views import COLORS, VIEWS, Circle, Slices
from deepseek.medical.volume_prediction import Result, mean_scores
from deepseek.models.volume_detector import Centers
from deepseek.registry import import_extra
from deepseek.version import __version__
from deepseek.whole_file import replacing

ORIENTATION = "SPL"
MAX_SCANS = 100
"""With pictures; of more, the last in the order of the page have none."""
MAX_NEAR = 6
"""Findings of a scan with a picture of their own."""
MAX_LISTED = 20
AROUND_MM, MARGIN_MM = 25.0, 10.0
SURE = 0.5
"""Score from which a finding is counted in the summary, and a false one makes a case worse."""
PERCENTILES = (0.5, 99.5)
_PLACE = ("x (left), mm", "y (back), mm", "z (up), mm")


@dataclass(frozen=True)
class _Case:
    row: dict
    about: str
    pictures: str


class ScanReport:
    """Collects what was found in scans, and writes a page of it.

    Args:
        spec: of the model.
        about: what is said at the end of the page, such as the model and its settings.
    """

    def __init__(self, spec: DataSpec, about: Mapping[str, object]) -> None:
        self._names = spec.class_names if spec.task == "segmentation" else ()
        self._window = parse_volume_transform(spec.transform or "").window
        self._about = dict(about)
        self._cases: list[_Case] = []

    def add(self, result: Result) -> None:
        """Draw a scan and what was found in it."""
        volume = result.volume.reoriented(ORIENTATION)
        labels = None if result.labels is None else _mask(result.labels)
        found = None if isinstance(result.found, Centers) else _mask(result.found)
        window = self._window or _percentiles(volume.voxels[0])
        slices = Slices(volume, window, found, labels, _circles(volume, result.row))
        sizes = " x ".join(map(str, result.volume.voxels.shape[1:]))
        spacing = " x ".join(f"{size:.3g}" for size in result.volume.spacing_mm)
        about = f"{sizes} voxels of {spacing} mm"
        self._cases.append(_Case(result.row, about, _pictures(slices, result.row)))

    def write(
        self,
        path: str | os.PathLike,
        rows: Sequence[dict],
        calibration: VoxelCalibration | None = None,
    ) -> Path:
        """Write the page, in one move.

        Args:
            path: of the file.
            rows: of all scans, those that could not be read too.
            calibration: of the probabilities of voxels, where they were counted.
        """
        done = [case.row for case in self._cases]
        broken = [row for row in rows if "error" in row]
        sections = [
            self._summary(done, broken), *score_sections(done, self._names),
            *([calibration_section(calibration, self._names)] if calibration else []),
            self._scans(), _broken(broken), self._made(),
        ]  # fmt: skip
        is_detector = not self._names
        head = (
            '<header><p class="kicker">deepseek scan report</p>'
            f"<h1>{'Findings' if is_detector else 'Masks'} of {len(done):,}"
            f' {"scan" if len(done) == 1 else "scans"}</h1><p class="lead">Found by a model; not'
            " checked by anyone, and no diagnosis.</p></header>"
        )
        page = assemble_page(
            "Scan report", head, [section for section in sections if section.body],
            f"Written by deepseek {__version__}. The page shows voxels of the scans.",
        )  # fmt: skip
        with replacing(Path(path)) as draft:
            draft.write_text(page, encoding="utf-8")
        return Path(path)

    def _summary(self, done: Sequence[dict], broken: Sequence[dict]) -> Section:
        tiles = [_tile("Scans", f"{len(done):,}", f"{len(broken)} could not be read")]
        if not self._names:
            scores = [each["score"] for row in done for each in row["findings"]]
            sure = f"{sum(score >= SURE for score in scores):,} with a score of {SURE} and more"
            tiles.append(_tile("Findings", f"{len(scores):,}", sure))
        for name in self._names[1:]:
            amounts = [row["ml"][name] for row in done]
            if amounts:
                low, high = min(amounts), max(amounts)
                spread = f"median; {number(low)} to {number(high)}"
                tiles.append(_tile(f"{name}, ml", number(float(np.median(amounts))), spread))
        titles = {
            "dice": "Dice", "hausdorff95_mm": "Hausdorff 95 %, mm", "cpm": "CPM",
            "sensitivity_at_1": "Sensitivity at 1 false mark a scan",
            "false_per_litre_at_1": "1 false mark a scan, a litre",
        }  # fmt: skip
        scores = mean_scores(done) | finding_scores(done)
        notes = {"cpm": "mean over 1/8 to 8 false marks a scan", "sensitivity_at_1": "of findings",
                 "false_per_litre_at_1": "of whole scans"}  # fmt: skip
        tiles += [
            _tile(titles[name], f"{value:.3f}", notes.get(name, "mean over scans and classes"))
            for name, value in scores.items()
        ]
        return Section("summary", "Summary", f'<dl class="tiles">{"".join(tiles)}</dl>')

    def _scans(self) -> Section:
        known = any("known" in case.row or "dice" in case.row for case in self._cases)
        cases = sorted(self._cases, key=lambda case: _badness(case.row), reverse=True)
        body = "".join(_card(case, at < MAX_SCANS) for at, case in enumerate(cases))
        order = "the worst first" if known else "the most that was found first"
        return Section("scans", f"Scans, {order}", body and self._key() + body)

    def _key(self) -> str:
        marks = [
            f'<span><i style="color:{color};background:{color}40"></i>{text(name)}</span>'
            for name, color in zip(self._names[1:], _repeated(len(self._names) - 1), strict=True)
        ]
        known = [case.row for case in self._cases if "known" in case.row or "dice" in case.row]
        if not self._names:
            kinds = [("#f0c14b", "found")] if not known else []
            if known:
                kinds = [("#2fc79b", "found, hits a known one"), ("#f0883e", "found, hits none")]
            marks += [
                f'<span><i class="round" style="color:{color}"></i>{name}</span>'
                for color, name in kinds
            ]
        if known:
            kind = "round dashed" if not self._names else ""
            marks.append(
                f'<span><i class="{kind}" style="color:var(--ink)"></i>known: white</span>'
            )
        marks.append('<label><input type="checkbox" id="overlays" checked> show overlays</label>')
        return f'<div class="key">{"".join(marks)}</div>'

    def _made(self) -> Section:
        rows = [[text(name), text(shorten(value, 200))] for name, value in self._about.items()]
        return Section("made", "How it was made", table(("What", "How"), rows, caption="Settings"))


def _repeated(count: int) -> list[str]:
    return [COLORS[at % len(COLORS)] for at in range(max(count, 0))]


def _mask(labels: Volume) -> np.ndarray:
    return labels.reoriented(ORIENTATION).voxels[0]


def _percentiles(voxels: np.ndarray) -> tuple[float, float]:
    every = voxels[tuple(slice(None, None, max(1, size // 64)) for size in voxels.shape)]
    low, high = np.percentile(every, PERCENTILES)
    return float(low), float(high)


def _circles(volume: Volume, row: dict) -> list[Circle]:
    circles = []
    for each in row.get("known", []):
        size = each["diameter_mm"]
        words = f"known, {size:.1f} mm" + (", not counted" if each["is_excluded"] else "")
        circles.append(Circle(_index(volume, each), size / 2, "known", "", words))
    for at, each in enumerate(row.get("findings", [])[:MAX_LISTED], 1):
        hit = each.get("is_hit")
        kind = "found" if hit is None else "hit" if hit else "false"
        words = f"finding {at}, {each['diameter_mm']:.1f} mm, score {each['score']:.2f}"
        circles.append(Circle(_index(volume, each), each["diameter_mm"] / 2, kind, str(at), words))
    return circles


def _index(volume: Volume, each: dict) -> tuple[float, float, float]:
    d, h, w = volume.to_indices(np.array([[each[axis] for axis in "xyz"]]))[0].tolist()
    return d, h, w


def _pictures(slices: Slices, row: dict) -> str:
    """Return three views through the first finding or the largest part, and others from near."""
    found = [circle for circle in slices.circles if circle.kind != "known"]
    missed = [
        circle
        for circle, each in zip(slices.circles, row.get("known", []), strict=False)
        if each["score"] is None and not each["is_excluded"]
    ]
    if "findings" in row:
        middle = next((circle.place for circle in [*found, *slices.circles]), None)
    else:
        middle = _largest(slices.found, slices.known)
    place = middle or tuple((size - 1) / 2 for size in slices.volume.voxels.shape[1:])
    views = "".join(_figure(slices.draw(view, place), name) for view, name in enumerate(VIEWS))
    near = [
        _figure(slices.draw(0, circle.place, AROUND_MM), circle.words)
        for circle in [*missed[:MAX_NEAR], *found[:MAX_NEAR]]
    ]
    near += _worst_parts(slices)
    body = f'<div class="slices">{views}</div>'
    if near:
        body += f'<div class="slices near">{"".join(near)}</div>'
    return body


def _largest(found: np.ndarray | None, known: np.ndarray | None) -> tuple[float, ...] | None:
    """Return a voxel in the middle of the largest connected part of what is found, else known."""
    for labels in (found, known):
        part = None if labels is None else _largest_part(labels > 0)
        if part is not None:
            return part.place
    return None


@dataclass(frozen=True)
class _Part:
    """A connected part of a mask: a voxel in its middle, its voxels, and its size along D, H, W."""

    place: tuple[float, ...]
    num_voxels: int
    sizes: np.ndarray


def _largest_part(mask: np.ndarray) -> _Part | None:
    if not mask.any():
        return None
    ndimage = import_extra("scipy.ndimage", "medical")
    parts, _ = ndimage.label(mask)
    inside = np.argwhere(parts == np.bincount(parts[mask]).argmax())
    nearest = np.abs(inside - inside.mean(0)).sum(1).argmin()
    return _Part(tuple(inside[nearest].tolist()), len(inside), np.ptp(inside, 0) + 1)


def _worst_parts(slices: Slices) -> list[str]:
    """Return three views through the largest part that is missed, and through that which is false.

    Where a voxel is of another class than was found, its part is missed, and false as well.
    """
    found, known = slices.found, slices.known
    if found is None or known is None:
        return []
    wrong, spacing = found != known, np.array(slices.volume.spacing_mm)
    figures = []
    for name, mask in (("missed", wrong & (known > 0)), ("false", wrong & (found > 0))):
        part = _largest_part(mask)
        if part is None:
            continue
        around = max(AROUND_MM, float((part.sizes * spacing).max()) / 2 + MARGIN_MM)
        words = f"the largest {name} part, {number(part.num_voxels * spacing.prod() / 1000)} ml"
        figures += [
            _figure(slices.draw(view, part.place, around), f"{words}: {title}")
            for view, title in enumerate(VIEWS)
        ]
    return figures


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def _badness(row: dict) -> tuple[float, float]:
    """Return what sorts scans: how wrong what was found is, or else how much it is."""
    if "dice" in row:
        return 1 - mean_dice(row), 0.0
    if "known" in row:
        missed = sum(each["score"] is None and not each["is_excluded"] for each in row["known"])
        false = [each["score"] for each in row["findings"] if each["is_hit"] is False]
        return float(missed + sum(score >= SURE for score in false)), max(false, default=0.0)
    if "findings" in row:
        return max((each["score"] for each in row["findings"]), default=0.0), 0.0
    return sum(row["ml"].values()), 0.0


def _card(case: _Case, has_pictures: bool) -> str:
    row = case.row
    body = f'<p class="note">{text(case.about)}</p>'
    body += case.pictures if has_pictures else '<p class="omitted">Without pictures here.</p>'
    body += _findings(row) if "findings" in row else _amounts(row) + _parts(row)
    return f'<article class="card"><h3>{text(row["scan"])}</h3>{body}</article>'


def _findings(row: dict) -> str:
    found = row["findings"]
    words = ""
    if "known" in row:
        counted = [each for each in row["known"] if not each["is_excluded"]]
        hit = sum(each["score"] is not None for each in counted)
        words = f'<p class="note">{hit} of {len(counted)} known findings are hit.</p>'
    if not found:
        return words + '<p class="note">Nothing was found.</p>'
    outcomes = {True: "hit", False: "false", None: "not counted"}
    lines = []
    for at, each in enumerate(found[:MAX_LISTED], 1):
        cells = [str(at), bar(each["score"], f"{each['score']:.3f}")]
        cells += [f"{each[name]:.1f}" for name in ("diameter_mm", "x", "y", "z")]
        cells += [f"{each[name]:.1f}" for name in _scored(each)]
        lines.append([*cells, *([outcomes[each["is_hit"]]] if "known" in row else [])])
    head = ["Finding", "Score", "Diameter, mm", *_PLACE]
    head += [name.capitalize() for name in _scored(found[0])]
    numeric = tuple(range(2, len(head)))
    head += ["Known"] if "known" in row else []
    body = table(head, lines, caption="Findings", numeric=numeric, is_sortable=True)
    if len(found) > MAX_LISTED:
        body += f'<p class="note">{len(found) - MAX_LISTED} more are in findings.csv.</p>'
    return words + body


def _amounts(row: dict) -> str:
    lines = []
    for name, amount in row["ml"].items():
        cells = [text(name), number(amount)]
        for score, digits in (("dice", 3), ("hausdorff95_mm", 1)):
            if score in row:
                value = row[score][name]
                cells.append("–" if value is None else f"{value:.{digits}f}")
        lines.append(cells)
    head = ["Class", "ml"] + (["Dice", "Hausdorff 95 %, mm"] if "dice" in row else [])
    return table(head, lines, caption="Amounts", numeric=tuple(range(1, len(head))))


def _parts(row: dict) -> str:
    """Return a table of the largest connected parts, where they were taken."""
    found = row.get("parts", [])
    if not found:
        return ""
    lines = []
    for each in found[:MAX_LISTED]:
        numbers = [f"{each[name]:.1f}" for name in ("diameter_mm", "x", "y", "z", *_scored(each))]
        lines.append([text(each["class"]), number(each["volume_ml"]), *numbers])
    head = ["Part", "ml", "Diameter, mm", *_PLACE]
    head += [name.capitalize() for name in _scored(found[0])]
    numeric = tuple(range(1, len(head)))
    body = table(head, lines, caption="Parts", numeric=numeric, is_sortable=True)
    if len(found) > MAX_LISTED:
        body += f'<p class="note">{len(found) - MAX_LISTED} smaller ones are in findings.csv.</p>'
    return body


def _scored(each: Mapping) -> list[str]:
    return [name for name in SCORES if name in each]


def _broken(rows: Sequence[dict]) -> Section:
    lines = [[text(row["scan"]), text(row["error"])] for row in rows]
    body = table(("Scan", "Reason"), lines, caption="Scans that could not be read") if rows else ""
    return Section("broken", "Could not be read", body)


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>"
