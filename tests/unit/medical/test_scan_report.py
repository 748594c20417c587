"""The page of scans: whole, small, safe, and its pictures the right way up."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from deepseek.datasets.volume import Volume, make_affine
from deepseek.medical import Findings, ScanReport, find_scans, predict_scans
from deepseek.medical.scan_findings import finding_rows
from deepseek.medical.scans import Scan
from deepseek.medical.score_sections import score_sections
from deepseek.medical.slice_views import Circle, Slices
from deepseek.medical.volume_prediction import Result
from deepseek.models import Centers, VolumeSegmenter

from ..models.test_volume_detector import CENTERS, make_detector
from ..models.test_volume_segmenter import make_engine
from .test_scan_findings import write_spots


def pictures(svg):
    """Pictures of an `<svg>` as arrays."""
    found = re.findall(r'href="data:image/\w+;base64,([^"]+)"', svg)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def quadrants(picture):
    """Return whether the brighter half is lower, and whether it is at the right."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    is_lower = picture[rows:].mean() > picture[:rows].mean()
    return bool(is_lower), bool(picture[:, columns:].mean() > picture[:, :columns].mean())


def test_views_hang_as_radiologists_hang_them():
    voxels = np.zeros((1, 16, 16, 16), np.float32)
    voxels[0, 8:, 8:, 8:] = 1  # up, back, left of the patient
    slices = Slices(Volume(voxels, make_affine((2.0, 1, 1))), (0, 1))
    grey = [pictures(slices.draw(view, (12, 12, 12)))[0] for view in range(3)]
    assert [quadrants(each) for each in grey] == [(True, True), (False, True), (False, True)]
    assert 'viewBox="0 0 16.0 32.0"' in slices.draw(1, (12, 12, 12))


def test_classes_have_colours_and_known_ones_an_edge():
    labels = np.zeros((8, 24, 24), np.uint8)
    labels[3:6, 5:15, 5:15] = 1
    volume = Volume(np.zeros((1, *labels.shape), np.int16), np.eye(4))
    (_, found) = pictures(Slices(volume, (0, 1), labels).draw(0, (4, 10, 10)))
    (_, known) = pictures(Slices(volume, (0, 1), None, labels).draw(0, (4, 10, 10)))
    assert (found[..., 3] > 0).mean() == pytest.approx(100 / 576, rel=0.01)
    assert 0 < (known[..., 3] > 0).mean() < 0.2 * (found[..., 3] > 0).mean()
    assert len(pictures(Slices(volume, (0, 1), labels).draw(0, (0, 10, 10)))) == 1


def test_spheres_are_drawn_in_the_slices_that_cut_them():
    volume = Volume(np.zeros((1, 20, 30, 30), np.int16), make_affine((2.0, 1, 1)))
    circle = Circle((10, 20, 6), 4.0, "found", "<1>", "finding <1>")
    slices = Slices(volume, (0, 1), circles=[circle])
    axial = slices.draw(0, (11, 0, 0))
    assert '<circle cx="6.5" cy="20.5" r="6.0"' in axial
    assert "&lt;1&gt;" in axial
    assert "<1>" not in axial
    assert "<circle" not in slices.draw(0, (13, 0, 0))
    # feet up: slice 10 of 20, 2 mm thick, is 19 mm below the top
    assert '<circle cx="6.5" cy="19.0"' in slices.draw(1, (0, 20, 0))
    assert '<circle cx="20.5" cy="19.0"' in slices.draw(2, (0, 0, 6))


class Page(HTMLParser):
    """What a page asks for, and its headings."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.opened = [], []
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "input", "image", "line", "circle", "path", "rect", "link", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "path", "rect", "image"):
            return
        assert self.opened.pop() == tag


@pytest.fixture
def folder(tmp_path):
    return write_spots(tmp_path / "set")


def write(predictor, folder, tmp_path, more=()):
    report = ScanReport(predictor.spec, {"model": "<b>x</b>"})
    rows = [*predict_scans(predictor, find_scans([folder]), on_result=report.add), *more]
    return report.write(tmp_path / "page.html", rows).read_text()


def test_findings_and_their_scores_are_a_page_of_its_own(folder, tmp_path):
    hostile = [{"scan": "<script>.nii", "error": "is <no> scan"}]
    page = write(make_detector(min_score=0.5), folder, tmp_path, hostile)
    for address in Page(page).addresses:
        assert address.startswith(("data:image/", "#"))
    assert "Findings of 2 scans" in page
    assert "CPM 1.000 (1.000 to 1.000)" in page
    assert "Calibration of scores" in page
    assert "2 of 2 known findings are hit." in page
    assert page.count('<svg class="slice"') == 2 * 3 + 3
    assert "&lt;script&gt;.nii" in page
    assert "<script>.nii" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_masks_and_their_scores_are_a_page_of_its_own(folder, tmp_path):
    segmenter = VolumeSegmenter(make_engine())
    page = write(segmenter, folder, tmp_path)
    Page(page)
    assert "Masks of 2 scans" in page
    assert "Hausdorff 95 %, mm" in page
    assert page.index("Scans, the worst first") < page.index("How it was made")


def test_what_is_missed_and_what_is_false_have_views_of_their_own(folder, tmp_path):
    report = ScanReport(make_engine().spec, {})
    volume = Volume(np.zeros((1, 12, 30, 30), np.int16), make_affine((2.0, 1, 1)))
    found, known = (Volume(np.zeros((1, 12, 30, 30), np.uint8), volume.affine) for _ in "ab")
    found.voxels[0, 2:6, 2:6, 2:6] = known.voxels[0, 7:10, 20:25, 20:25] = 1
    row = {"scan": "a", "ml": {"bright": 0.1}, "dice": {"bright": 0.0}}
    row["hausdorff95_mm"] = {"bright": None}
    report.add(Result(Scan(tmp_path / "a"), volume, found, known, row))
    page = report.write(tmp_path / "page.html", [row]).read_text()
    assert page.count("the largest missed part, 0.15 ml") == 3
    assert page.count("the largest false part, 0.128 ml") == 3
    assert page.count('<svg class="slice"') == 9


def test_letters_of_a_flat_view_have_room_above_each_other():
    flat = Slices(Volume(np.zeros((1, 4, 90, 90), np.int16), make_affine((2.0, 1, 1))), (0, 1))
    (size,) = set(re.findall(r"font-size:([\d.]+)px", flat.draw(1, (0, 0, 0))))
    assert 2 * float(size) < 8


def test_scans_are_called_as_in_the_file_of_findings(tmp_path):
    for patient, shape in (("p1", (9, 9, 9)), ("p2", (9, 9, 9)), ("p3", (9, 9))):
        (tmp_path / "scans" / patient).mkdir(parents=True)
        np.save(tmp_path / "scans" / patient / "scan.npy", np.zeros(shape, np.int16))
    page = write(make_detector(), tmp_path / "scans", tmp_path)
    assert re.findall("<h3>(p.*?)</h3>", page) == ["p1_scan", "p2_scan"]
    assert re.findall('<th scope="row">(p.*?)</th>', page) == ["p3_scan"]


def test_of_scans_without_labels_the_page_has_no_scores(folder, tmp_path):
    for predictor in (make_detector(min_score=0.5), VolumeSegmenter(make_engine())):
        page = write(predictor, folder / "images", tmp_path)
        assert 'id="scores"' not in page
        assert "the most that was found first" in page


def test_a_scan_with_nothing_in_it_and_no_scan_at_all_are_pages(tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((9, 9, 9), np.int16))
    detector = make_detector()
    assert "Nothing was found." in write(detector, tmp_path / "empty.npy", tmp_path)
    report = ScanReport(detector.spec, {})
    rows = [{"scan": "a", "error": "broken"}]
    assert "Findings of 0 scans" in report.write(tmp_path / "none.html", rows).read_text()


def test_sizes_are_counted_at_one_false_mark_a_scan():
    known = Findings(CENTERS, [5, 9])
    found = Centers(CENTERS[:1], np.array([5.0]), np.array([0.9]))
    (section,) = score_sections([{"scan": "a", **finding_rows(found, known)}], ())
    rows = re.findall(r'<th scope="row">([^<]*mm[^<]*)</th>(.*?)</tr>', section.body)
    counts = {name: re.findall(r">([^<]+)</td>", cells)[:2] for name, cells in rows}
    assert counts["0 to 6 mm"] == ["1", "1"]
    assert counts["8 to 15 mm"] == ["1", "0"]
