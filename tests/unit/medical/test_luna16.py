import numpy as np
import pytest

from deepseek.errors import DataError
from deepseek.medical import Marks, match_marks
from deepseek.medical.luna16 import luna16_scans, read_findings, read_marks, write_marks

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


WRONG_LISTS = [
    ("", "has no column 'seriesuid', but nothing"),
    ("seriesuid,x,y,z\n", "has no column 'coordX', but seriesuid, x, y, z"),
    (HEADER + "a,1,2,3,6\na,1,2,x,6\n", "line 3: coordinates or diameter_mm are not numbers"),
    (HEADER + "a,1,2,3,1_0\n", "line 2: coordinates or diameter_mm are not numbers"),
    (HEADER + "a,1,2,3\n", "line 2: coordinates or diameter_mm are not numbers"),
    (HEADER + "a,1,nan,3,4\n", "line 2: coordinates or diameter_mm are not numbers"),
]
"""Lists of findings, and what is said of them."""


def write(path, text):
    path.write_text(text)
    return path


def test_findings_excluded_ones_and_marks_are_read(tmp_path):
    annotations = write(tmp_path / "annotations.csv", HEADER + "a,1,2,3,6\nb,0,0,0,10\n")
    excluded = write(tmp_path / "annotations_excluded.csv", HEADER + "a,50,0,0,-1.0\n")
    findings = read_findings(annotations, excluded, scans=["a", "b", "healthy"])
    assert list(findings) == ["a", "b", "healthy"]
    assert findings["a"].is_excluded.tolist() == [False, True]
    assert findings["a"].centers_mm.tolist() == [[1, 2, 3], [50, 0, 0]]
    assert len(findings["healthy"].diameters_mm) == 0
    marks = {
        "a": Marks(np.array([[1, 2, 4.0], [51, 0, 0]]), np.array([0.9, 0.8])),
        "healthy": Marks(np.array([[7, 7, 7.0]]), np.array([0.1])),
    }
    write_marks(tmp_path / "marks.csv", marks)
    froc = match_marks(findings, read_marks(tmp_path / "marks.csv"))
    assert froc.hit_scores.tolist() == [0.9, -np.inf]
    assert (froc.false_scores.tolist(), froc.num_passed_over) == ([0.1], 1)


def test_candidates_are_marks_by_their_class(tmp_path):
    path = write(
        tmp_path / "candidates_v2.csv", "seriesuid,coordX,coordY,coordZ,class\na,1,2,3,1\n"
    )
    assert read_marks(path, "class")["a"].scores.tolist() == [1]


def test_scans_are_found_in_their_subsets(tmp_path):
    for number, name in enumerate(("b", "a")):
        (tmp_path / f"subset{number}").mkdir()
        (tmp_path / f"subset{number}" / f"{name}.mhd").touch()
    scans = luna16_scans(tmp_path)
    assert {name: path.parent.name for name, path in scans.items()} == {
        "a": "subset1",
        "b": "subset0",
    }
    (tmp_path / "subset1" / "b.mhd").touch()
    with pytest.raises(DataError, match="a scan is there twice"):
        luna16_scans(tmp_path)
    with pytest.raises(DataError, match=r"holds no \.mhd files"):
        luna16_scans(tmp_path / "gone")


@pytest.mark.parametrize(("text", "message"), WRONG_LISTS)
def test_wrong_lists_are_refused(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_findings(write(tmp_path / "annotations.csv", text))


def test_lists_with_a_byte_order_mark_are_read_and_other_encodings_refused(tmp_path):
    path = tmp_path / "annotations.csv"
    path.write_text(HEADER + "a,1,2,3,6\n", encoding="utf-8-sig")
    assert read_findings(path)["a"].diameters_mm.tolist() == [6]
    for encoding in ("utf-16", "latin-1"):
        path.write_text(HEADER + "\u00e9,1,2,3,6\n", encoding=encoding)
        with pytest.raises(DataError, match="is no CSV file"):
            read_findings(path)
