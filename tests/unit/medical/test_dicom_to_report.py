"""From DICOM series to pages, without a patient: phantoms, tiny models, every file on the way.

Nodules have the shapes that radiologists drew; `nodule_outlines/README.md` says whose they are.
"""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.medical import ScanReport, find_scans, predict_scans
from deepseek.medical.dicom_segmentation import read_dicom_segmentation
from deepseek.medical.nodule_shapes import read_nodule_shapes
from deepseek.medical.phantom_files import write_phantom
from deepseek.medical.phantoms import make_phantom
from deepseek.medical.regions import find_region
from deepseek.models import VolumeSegmenter, WindowOptions

from ..models.test_volume_detector import make_detector
from ..models.test_volume_segmenter import make_engine

pytest.importorskip("highdicom")

OUTLINES = Path(__file__).with_name("nodule_outlines") / "outlines.sqlite.gz"
SPACING_MM = (4.0, 2.5, 2.5)


@pytest.mark.filterwarnings("ignore:more than 100 centres")  # it has hardly learnt
def test_series_become_findings_masks_segmentations_and_pages(tmp_path):
    shapes = read_nodule_shapes(OUTLINES)
    assert len(shapes) == 4
    for number in range(2):
        phantom = make_phantom((32, 64, 64), SPACING_MM, num_nodules=1, shapes=shapes, seed=number)
        (shape,) = phantom.shapes
        assert shape.outlines
        assert phantom.labels.sum() == shape.draw(SPACING_MM).sum()
        write_phantom(phantom, tmp_path / "scans", f"scan-{number}", "dicom")
    (tmp_path / "scans" / "images" / "scan-0" / "0003.dcm").unlink()  # a slice is lost
    scans = find_scans([tmp_path / "scans"])
    region = find_region("lungs")
    predictors = {
        "masks": VolumeSegmenter(
            make_engine("window_-1000_300", (8, 16, 16)), WindowOptions(region=region)
        ),
        "findings": make_detector("window_-1000_300", (8, 16, 16), region=region),
    }
    pages, rows = {}, {}
    for name, predictor in predictors.items():
        report = ScanReport(predictor.spec, {"model": name})
        rows[name] = list(predict_scans(predictor, scans, tmp_path / name, on_result=report.add))
        pages[name] = report.write(tmp_path / f"{name}.html", rows[name]).read_text()
        assert "missing" in rows[name][0]["error"]
        assert "Could not be read" in pages[name]
    row = rows["masks"][1]
    series = scans[1].image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmented = read_dicom_segmentation(tmp_path / "masks" / "scan-1.dcm", series)
    mask = read_volume(row["mask"])
    np.testing.assert_array_equal(mask.reoriented("SPL").voxels[0], segmented)
    assert row["ml"]["bright"] > 0
    assert 0 <= row["dice"]["bright"] < 1
    assert "PHANTOM" not in pages["masks"]
    found = rows["findings"][1]["findings"]
    with (tmp_path / "findings" / "findings.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found) > 0
    places = np.array([[float(line[axis]) for axis in "xyz"] for line in lines])
    # what is found lies in the scan
    low, high = np.sort(read_volume(series).to_mm(np.array([[0, 0, 0], [31, 63, 63]])), axis=0)
    assert ((places >= low - 5) & (places <= high + 5)).all()
    assert "FROC: sensitivity and false marks" in pages["findings"]
