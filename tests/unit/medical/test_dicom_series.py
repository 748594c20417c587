import zlib

import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.errors import DataError
from deepseek.medical import find_scans
from deepseek.medical.dicom_folders import find_series, series_uid
from deepseek.medical.dicom_series import read_headers

from .broken_inputs import deflated, without
from .slices import SECRET, SPACING_MM, phantom, stored, write_series

pydicom = pytest.importorskip("pydicom")


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


RESCALES = {"intercept 0": (1, 0), "intercept -2024": (1, -2024), "slope 1.9": (1.9, -1024)}


@pytest.mark.parametrize("rescale", RESCALES.values(), ids=RESCALES)
def test_a_wrong_rescale_of_real_slabs_is_refused(real_data, tmp_path, rescale):
    folders = sorted((real_data / "lidc_ct_slabs").glob("LIDC*"))
    assert len(folders) == 3
    for folder in folders:
        written = tmp_path / folder.name
        written.mkdir()
        for file in sorted(folder.glob("*.dcm")):
            header = pydicom.dcmread(file)
            header.RescaleSlope, header.RescaleIntercept = rescale
            header.save_as(written / file.name)
        with pytest.raises(DataError, match="the rescale of the headers is wrong"):
            read_volume(written)


def test_padding_is_no_air_however_it_is_said(tmp_path):
    voxels = phantom()
    voxels[voxels < -500] = 40  # no air is left but in the padding
    voxels[:, :6, :6] = -1000

    def padded(number, header):
        header.PixelPaddingValue, header.PixelPaddingRangeLimit = 24, 0

    assert read_volume(write_series(tmp_path / "a", voxels)).voxels.min() == -1000
    with pytest.raises(DataError, match=r"without padding 0\.0% of it is air"):
        read_volume(write_series(tmp_path / "b", voxels, padded))


def test_a_single_slice_needs_its_thickness(tmp_path):
    assert read_volume(write_series(tmp_path / "a", phantom()[:1])).spacing_mm[0] == 2.5
    folder = write_series(tmp_path / "b", phantom()[:1], without("SliceThickness"))
    with pytest.raises(DataError, match="a single slice of unknown thickness"):
        read_volume(folder)


def without_preamble(path, keeps_meta, implicit):
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.dcmread(path)
    if keeps_meta:
        path.write_bytes(path.read_bytes()[132:])
        return
    del header.file_meta
    header.preamble = None
    header.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


@pytest.mark.parametrize(("keeps_meta", "implicit"), [(True, False), (False, True), (False, False)])
def test_slices_without_preamble_are_read_as_they_are(keeps_meta, implicit, tmp_path, caplog):
    expected = read_volume(write_series(tmp_path / "a"))
    folder = write_series(tmp_path / "b")
    for path in folder.iterdir():
        without_preamble(path, keeps_meta, implicit)
        assert path.read_bytes()[128:132] != b"DICM"
        path.rename(path.with_suffix(""))
    (folder / "notes").write_bytes(b"\x08\x00\x05\x00CS nothing of DICOM in it")
    (folder / "more").write_bytes(b"\x02\x00\x00\x00")
    found = read_volume(folder)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert [scan.name for scan in find_scans([tmp_path])] == ["a", "b"]
    assert not caplog.records  # pydicom would quote what it does not understand


def test_a_deflated_file_without_preamble_is_refused_before_it_is_inflated(tmp_path):
    folder = write_series(tmp_path / "a")
    path = folder / "000.dcm"
    content = path.read_bytes()[132:]
    at = content.index(b"1.2.840.10008.1.2.1\0")
    path.write_bytes(content[: at - 2] + b"\x16\x001.2.840.10008.1.2.1.99" + content[at + 20 :])
    with pytest.raises(DataError, match="stored deflated"):
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


def test_what_is_deflated_is_never_inflated(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "a", change=deflated)
    assert (folder / "000.dcm").stat().st_size < 10_000
    monkeypatch.delattr(zlib, "decompress")
    assert find_series(tmp_path) == [folder]
    assert series_uid(folder) is None
    for read in (read_volume, read_headers):
        with pytest.raises(DataError, match="is stored deflated"):
            read(folder)


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
    np.testing.assert_array_equal(volume.voxels[0], stored(phantom()))


def test_images_of_ct_without_a_modality_are_ct(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", change=without("Modality")))
    np.testing.assert_array_equal(volume.voxels[0], phantom())
    folder = write_series(tmp_path / "b", change=without("Modality", "RescaleSlope"))
    with pytest.raises(DataError, match="CT without RescaleSlope"):
        read_volume(folder)


def test_slices_of_emission_tomography_have_scales_of_their_own(tmp_path):
    def emission(number, header):
        header.Modality, header.RescaleSlope, header.RescaleIntercept = "PT", 1 + number, 0

    volume = read_volume(write_series(tmp_path / "a", change=emission))
    scales = 1 + np.arange(8, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(volume.voxels[0], scales * stored(phantom()))


def test_gaps_that_are_said_and_numbers_of_echoes_are_no_missing_slices(tmp_path):
    def gaps(number, header):
        header.SpacingBetweenSlices, header.SliceThickness = 2.5, 1.0

    def echoes(number, header):
        header.Modality, header.InstanceNumber = "MR", 3 * number + 1

    for name, change in (("a", gaps), ("b", echoes)):
        assert read_volume(write_series(tmp_path / name, change=change)).spacing_mm[0] == 2.5


def test_a_series_is_found_below_its_patient(tmp_path):
    write_series(tmp_path / "patient" / "study" / "series")

    def picture(number, header):
        header.Modality = "DX"
        del header.ImagePositionPatient

    write_series(tmp_path / "patient" / "chest" / "series", change=picture)
    (tmp_path / "patient" / "circle").symlink_to(tmp_path / "patient")
    volume = read_volume(tmp_path / "patient")
    np.testing.assert_array_equal(volume.voxels[0], phantom())


@pytest.mark.parametrize("modality", ["RTDOSE", "RTIMAGE"])
def test_what_was_planned_on_a_series_is_passed_over(tmp_path, modality):
    def planned(number, header):
        header.Modality, header.NumberOfFrames = modality, 4

    series = write_series(tmp_path / "study" / "CT")
    write_series(tmp_path / "study" / "PLAN", phantom((1, 24, 20)), planned)
    assert find_series(tmp_path) == [series]
