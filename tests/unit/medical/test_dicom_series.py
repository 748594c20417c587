import logging

import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.errors import DataError

from .slices import SECRET, SPACING_MM, phantom, write_series

pytest.importorskip("pydicom")


def test_slices_are_sorted_by_position_and_become_hounsfield_units(tmp_path):
    folder = write_series(tmp_path / "a")
    (folder / "notes.xml").write_text("<xml/>")
    (folder / ".hidden.dcm").write_text("")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.voxels[0], phantom())
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.orientation == "SPL"
    assert volume.to_mm(np.array([[2, 0, 0]]))[0].tolist() == [-10, -20, -25]


def test_a_series_from_another_side_is_turned_as_asked(tmp_path):
    voxels = phantom()

    def sagittal(number, header):
        header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        header.ImagePositionPatient = [2.5 * number, 0, 0]

    volume = read_volume(write_series(tmp_path / "a", voxels, sagittal))
    assert volume.orientation == "RIP"  # columns lead to P, rows to I; their normal to the right
    turned = volume.reoriented("SPL")
    assert turned.voxels.shape == (1, voxels.shape[1], voxels.shape[2], voxels.shape[0])


def test_real_slabs_are_as_simpleitk_reads_them(real_data):
    itk = pytest.importorskip("SimpleITK")
    for folder in sorted((real_data / "lidc_ct_slabs").glob("LIDC*")):
        volume = read_volume(folder)
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        expected = np.maximum(itk.GetArrayFromImage(image), -1024)
        np.testing.assert_array_equal(volume.voxels[0], expected)
        assert volume.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
        origin = volume.to_mm(np.zeros((1, 3)))[0]
        np.testing.assert_allclose(origin, image.GetOrigin(), atol=1e-4)


def setting(**values):
    """Change headers of slice 3."""

    def change(number, header):
        if number == 3:
            for name, value in values.items():
                setattr(header, name, value)

    return change


def everywhere(**values):
    def change(_, header):
        for name, value in values.items():
            setattr(header, name, value)

    return change


def without(*names, only=None):
    def change(number, header):
        for name in names:
            if only is None or number == only:
                delattr(header, name)

    return change


def leave_out(*numbers):
    return lambda number, header: number not in numbers


def place(position):
    def change(number, header):
        header.ImagePositionPatient = [float(x) for x in position(number)]

    return change


def frames(number, header):
    header.NumberOfFrames = 8
    del header.ImagePositionPatient


BROKEN = {
    "one slice missing": (
        leave_out(4),
        r"1 slices of .* are missing, such as between -22\.5 and -17\.5 mm \(\d+\.dcm, \d+\.dcm\)",
    ),
    "several slices missing": (leave_out(2, 3, 5), "3 slices of .* are missing"),
    "a slice twice": (
        setting(ImagePositionPatient=[-10, -20, -25]),
        r"1 slices of .* are there twice, .* at -25 mm",
    ),
    "mixed spacing": (
        place(lambda n: (0, 0, 2.5 * n if n < 4 else 10 + 1.7 * (n - 4))),
        r"slices of .* are 1\.7 to 2\.5 mm apart: their spacing is mixed",
    ),
    "a tilted gantry": (
        place(lambda n: (0, 1.0 * n, 2.5 * n)),
        r"shifted beside each other by up to 7\.0 mm: the gantry was tilted",
    ),
    "all slices at one place": (place(lambda n: (0, 0, 0)), "7 slices of .* are there twice"),
    "two series": (setting(SeriesInstanceUID="9.9"), "holds 2 series, of 7, 1 slices"),
    "two patients": (setting(PatientID="other"), "holds 2 patients, of 7, 1 slices"),
    "two frames of reference": (setting(FrameOfReferenceUID="9"), "holds 2 frames of reference"),
    "another pixel spacing": (
        setting(PixelSpacing=[0.9, 0.7]),
        r"differ in pixel spacing: \(0\.\d, 0\.7\) of \d+\.dcm, \(0\.\d, 0\.7\) of",
    ),
    "another orientation": (
        setting(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "differ in orientation",
    ),
    "another size": (
        setting(Rows=12, PixelData=b"\0" * 480),
        r"differ in size: \(\d+, 20\) of",
    ),
    "a colour picture": (setting(SamplesPerPixel=3), "3 samples a pixel: it is a picture"),
    "inverted grey": (
        setting(PhotometricInterpretation="MONOCHROME1"),
        "stored as MONOCHROME1, not MONOCHROME2",
    ),
    "no position": (without("ImagePositionPatient", only=3), "lacks ImagePositionPatient"),
    "no pixel spacing": (without("PixelSpacing"), "lacks PixelSpacing: its place in the patient"),
    "no size": (without("Rows", only=2), "lacks the size of its image: it is truncated"),
    "spacing 0": (everywhere(PixelSpacing=[0, 0]), "not the numbers they should be"),
    "two numbers of position": (setting(ImagePositionPatient=[1, 2]), "not the numbers they"),
    "no right angle": (
        everywhere(ImageOrientationPatient=[1, 0, 0, 0.7071, 0.7071, 0]),
        "no right angle",
    ),
    "no rescale": (without("RescaleSlope"), "CT without RescaleSlope and RescaleIntercept"),
    "slope 0": (setting(RescaleSlope=0), "has RescaleSlope=0"),
    "intercept forgotten": (
        everywhere(RescaleIntercept=0),
        r"is CT from 24 to 1924 HU after rescale: air is about -1000",
    ),
    "slope of another unit": (
        everywhere(RescaleSlope=1000),
        "HU after rescale: air is about -1000",
    ),
    "pixels truncated": (
        setting(PixelData=b"\0" * 100),
        "declares 960 bytes of voxels and holds 100",
    ),
    "no pixels": (without("PixelData", only=5), "has no pixels: it is truncated"),
    "a bomb": (everywhere(Rows=60_000, Columns=60_000), "60000 x 60000 voxels, more than max"),
    "frames in one file": (frames, "holds 8 frames in one file, which are not read yet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_series_is_refused_with_the_reason_and_without_the_patient(
    case, tmp_path, caplog, recwarn
):
    change, message = BROKEN[case]
    folder = write_series(tmp_path / "a", change=change)
    recwarn.clear()  # of writing what is broken
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=message) as caught:
        read_volume(folder)
    said = [str(caught.value), caplog.text, *(str(warning.message) for warning in recwarn)]
    assert not any(SECRET in text or "1970" in text or "1.2.3.5" in text for text in said)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_single_slice_needs_its_thickness(tmp_path):
    assert read_volume(write_series(tmp_path / "a", phantom()[:1])).spacing_mm[0] == 2.5
    folder = write_series(tmp_path / "b", phantom()[:1], without("SliceThickness"))
    with pytest.raises(DataError, match="a single slice of unknown thickness"):
        read_volume(folder)


def test_files_that_are_no_slices(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="holds no DICOM images"):
        read_volume(empty)
    folder = write_series(tmp_path / "a")
    (folder / "900.dcm").write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"900\.dcm is called \.dcm and is no DICOM file"):
        read_volume(folder)
    (folder / "900.dcm").write_bytes((folder / "000.dcm").read_bytes()[:300])
    with pytest.raises(DataError, match=r"900\.dcm"):
        read_volume(folder)


def test_a_slice_cut_off_within_its_pixels_is_refused(tmp_path):
    folder = write_series(tmp_path / "a")
    path = folder / "002.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"002\.dcm"):
        read_volume(folder)


def test_a_compression_that_is_not_what_it_says_is_refused(tmp_path):
    folder = write_series(tmp_path / "a")
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.5"))
    with pytest.raises(DataError, match="cannot be read as DICOM"):
        read_volume(folder)


def test_whatever_bytes_are_changed_a_series_is_read_or_refused(tmp_path):
    folder = write_series(tmp_path / "a", phantom((3, 16, 16)))
    path, rng, refusals = folder / "001.dcm", np.random.default_rng(0), []
    good = path.read_bytes()
    for _ in range(100):
        raw = bytearray(good)
        for at in rng.integers(128, 900, rng.integers(1, 6)).tolist():
            raw[at] = rng.integers(0, 256)
        path.write_bytes(raw[: rng.integers(1, len(raw) + 1)] if rng.random() < 0.2 else raw)
        try:
            read_volume(folder, max_voxels=100_000)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 15
    assert SECRET not in "".join(refusals)


def test_magnetic_resonance_needs_no_rescale(tmp_path):
    def magnetic(number, header):
        header.Modality = "MR"
        del header.RescaleSlope, header.RescaleIntercept

    volume = read_volume(write_series(tmp_path / "a", change=magnetic))
    np.testing.assert_array_equal(volume.voxels[0], phantom() + 1024)
