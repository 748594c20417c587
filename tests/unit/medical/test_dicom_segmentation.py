import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical.dicom_segmentation import (
    _find_abnormal,
    read_dicom_segmentation,
    write_dicom_segmentation,
)

from .slices import SECRET, write_series

pytest.importorskip("highdicom")
NAMES = ("background", "lung", "nodule")


def study(number, header):
    """What highdicom asks of the slices of a series."""
    header.StudyInstanceUID = "1.2.3.7"
    for name in ("StudyID", "StudyDate", "StudyTime", "PatientSex", "AccessionNumber"):
        setattr(header, name, "")
    header.ReferringPhysicianName = header.SeriesNumber = header.Manufacturer = ""
    header.SeriesNumber = 1


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "series", change=study)


def draw(volume):
    labels = np.zeros(volume.voxels.shape, np.uint8)
    labels[0, 1:4, 5:9, 5:9], labels[0, 6, 10, 3:7] = 1, 2
    return Volume(labels, volume.affine)


def test_what_is_written_is_read_back(series, tmp_path):
    labels = draw(read_volume(series))
    write_dicom_segmentation(tmp_path / "a.dcm", labels, series, NAMES)
    np.testing.assert_array_equal(
        read_dicom_segmentation(tmp_path / "a.dcm", series), labels.voxels[0]
    )


def test_others_read_it_where_it_lies(series, tmp_path):
    import highdicom
    import pydicom

    volume = read_volume(series)
    labels = draw(volume)
    write_dicom_segmentation(tmp_path / "a.dcm", labels, series, NAMES)
    header = pydicom.dcmread(tmp_path / "a.dcm")
    assert (header.Modality, header.StudyInstanceUID) == ("SEG", "1.2.3.7")
    assert header.PatientName == SECRET  # or no archive would know whose it is
    assert [segment.SegmentLabel for segment in header.SegmentSequence] == ["lung", "nodule"]
    there = highdicom.seg.segread(tmp_path / "a.dcm").get_volume(
        combine_segments=True, allow_missing_positions=True
    )
    indices = np.argwhere(there.array == 2)
    found_mm = (there.affine @ np.column_stack([indices, np.ones(len(indices))]).T)[:3].T
    known_mm = volume.to_mm(np.argwhere(labels.voxels[0] == 2))
    np.testing.assert_allclose(np.sort(found_mm, 0), np.sort(known_mm, 0), atol=1e-4)


@pytest.mark.parametrize(
    ("abnormal", "expected"),
    [
        (None, ["Anatomical Structure", "Morphologically Abnormal Structure"]),
        (["lung"], ["Morphologically Abnormal Structure", "Anatomical Structure"]),
        ([], ["Anatomical Structure"] * 2),
    ],
)
def test_what_is_abnormal_is_called_so(series, tmp_path, abnormal, expected):
    import pydicom

    labels = draw(read_volume(series))
    write_dicom_segmentation(tmp_path / "a.dcm", labels, series, NAMES, abnormal)
    header = pydicom.dcmread(tmp_path / "a.dcm")
    categories = [
        segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning
        for segment in header.SegmentSequence
    ]
    assert [name.lower() for name in categories] == [name.lower() for name in expected]
    with pytest.raises(ConfigError, match="abnormal='bone' is none of the classes"):
        write_dicom_segmentation(tmp_path / "b.dcm", labels, series, NAMES, ["bone"])


def test_anatomy_is_not_abnormal_by_a_part_of_its_name():
    abnormal = ["LungMass", "masses", "cysts", "cyst_2", "liver_tumour", "Nodules"]
    names = ["mass", *abnormal, "masseter_left", "cystic_duct", "CysticArtery", "lung"]
    assert _find_abnormal(names) == abnormal  # the first is the background


def test_nothing_found_is_a_segmentation_as_well(series, tmp_path):
    volume = read_volume(series)
    nothing = Volume(np.zeros(volume.voxels.shape, np.uint8), volume.affine)
    write_dicom_segmentation(tmp_path / "a.dcm", nothing, series, NAMES)
    assert not read_dicom_segmentation(tmp_path / "a.dcm", series).any()


def test_real_slabs_are_written_and_read_back(real_data, tmp_path):
    series = real_data / "lidc_ct_slabs" / "LIDC-IDRI-0002"
    volume = read_volume(series)
    labels = Volume((volume.voxels < -400).astype(np.uint8), volume.affine)
    write_dicom_segmentation(tmp_path / "a.dcm", labels, series, NAMES)
    assert (tmp_path / "a.dcm").is_file()


def test_labels_of_another_series_and_headers_without_a_study_are_refused(series, tmp_path):
    labels = draw(read_volume(series))
    cut = Volume(labels.voxels[:, 1:], labels.affine)
    with pytest.raises(DataError, match=r"shape \(1, 7, 24, 20\), the series of"):
        write_dicom_segmentation(tmp_path / "a.dcm", cut, series, NAMES)
    bare = write_series(tmp_path / "bare")
    with pytest.raises(DataError, match=r"lack what a DICOM segmentation needs") as error:
        write_dicom_segmentation(tmp_path / "a.dcm", labels, bare, NAMES)
    assert SECRET not in str(error.value)
    with pytest.raises(DataError, match="is no DICOM segmentation of the series"):
        read_dicom_segmentation(next(series.glob("*.dcm")), series)
    assert not (tmp_path / "a.dcm").exists()
    assert list(tmp_path.glob(".a.dcm*")) == []
