"""Formats of volumes: what is read, and what is refused with its reason."""

import gzip
import struct
import zipfile

import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.datasets.nifti import decode_nifti
from deepseek.errors import DataError

from .broken_files import DAMAGED_NIFTI, WRONG_METAIMAGE, shorten
from .volumes import AFFINE_RAS, draw, write_metaimage, write_nifti


def test_numpy_volumes_are_read(tmp_path):
    np.save(tmp_path / "a.npy", draw())
    volume = read_volume(tmp_path / "a.npy")
    np.testing.assert_array_equal(volume.voxels, draw()[None])
    assert volume.spacing_mm == (1, 1, 1)
    two = np.asfortranarray(np.stack([draw(), draw(1)]))
    np.savez_compressed(tmp_path / "b.npz", voxels=two, spacing_mm=[2.5, 0.8, 0.7])
    volume = read_volume(tmp_path / "b.npz")
    np.testing.assert_array_equal(volume.voxels, two)
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    np.savez(tmp_path / "c.npz", voxels=draw(), affine=volume.affine)
    assert read_volume(tmp_path / "c.npz").orientation == "SPL"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.mhd", "a.mha"])
def test_metaimage_is_read(tmp_path, packed, name):
    path = write_metaimage(tmp_path / name, draw(), packed, local=name == "a.mha")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels[0], draw())
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.to_mm(np.zeros((1, 3))).tolist() == [[-10, -20, -30]]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_metaimage_names_its_voxels_by_any_letters(tmp_path, encoding):
    path = write_metaimage(tmp_path / "Müller.mhd", draw())
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    np.testing.assert_array_equal(read_volume(path).voxels[0], draw())


def test_metaimage_has_the_geometry_of_simpleitk(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(draw())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, 20, 30))
    turn, _ = np.linalg.qr(np.eye(3) + np.random.default_rng(0).normal(0, 0.2, (3, 3)))
    turn = turn * np.sign(np.linalg.det(turn))
    image.SetDirection(turn.ravel().tolist())
    for name in ("a.mha", "b.mhd"):
        itk.WriteImage(image, tmp_path / name, useCompression=name == "a.mha")
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels[0], draw())
        for index in ((0, 0, 0), (5, 6, 7)):
            expected = image.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose(volume.to_mm(np.array([index]))[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_is_read_with_its_place(tmp_path, name):
    pytest.importorskip("nibabel")
    volume = read_volume(write_nifti(tmp_path / name, draw()))
    np.testing.assert_array_equal(volume.voxels[0], draw())
    place = AFFINE_RAS @ [3, 2, 1, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(volume.to_mm(np.array([[1, 2, 3]]))[0], place[:3], atol=1e-5)
    assert volume.orientation == "SAL"


def test_nifti_of_several_gzip_members_is_read_whole(tmp_path):
    pytest.importorskip("nibabel")
    content = write_nifti(tmp_path / "a.nii", draw()).read_bytes()
    parts = content[:400], content[400:], b""  # bgzip ends with an empty one
    packed = b"".join(map(gzip.compress, parts))
    (tmp_path / "a.nii.gz").write_bytes(packed)
    for volume in (decode_nifti(packed, "a", 1000), read_volume(tmp_path / "a.nii.gz")):
        np.testing.assert_array_equal(volume.voxels[0], draw())
    bomb = b"".join([gzip.compress(bytes(1 << 20))] * 3)
    with pytest.raises(DataError, match="more than 1,056,576 bytes unpacked"):
        decode_nifti(bomb, "a", 1000)
    with pytest.raises(DataError, match="is damaged"):
        decode_nifti(packed[:-40], "a", 1000)


def test_channels_and_units_of_nifti(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.stack([draw().T, draw(1).T], -1), np.diag([0.002] * 3 + [1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.voxels, np.stack([draw(), draw(1)]))
    assert volume.spacing_mm == pytest.approx((2, 2, 2))


def write_fourth(path, count, step=1.0, unit="sec", shape=None, **fields):
    nibabel = pytest.importorskip("nibabel")
    voxels = np.stack([draw(number).T for number in range(count)], -1)
    image = nibabel.Nifti1Image(voxels.reshape(shape or voxels.shape), AFFINE_RAS)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("settings", [{}, {"step": 0.0, "unit": "unknown"}, {"count": 16}])
def test_a_fourth_axis_is_channels_unless_it_is_time(settings, tmp_path):
    path = write_fourth(tmp_path / "a.nii.gz", **{"count": 4, **settings})
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels[3], draw(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 2.0}, "4 volumes along its fourth axis, 2 sec apart: a series of times"),
        ({"step": 2.5, "unit": "unknown"}, r"2\.5 units apart"),
        ({"slice_duration": 0.05}, "1 sec apart: a series of times"),
        ({"slice_code": 3}, "a series of times"),
        ({"count": 17}, "17 volumes along its fourth axis"),
    ],
)
def test_times_are_not_taken_for_channels(settings, message, tmp_path):
    path = write_fourth(tmp_path / "a.nii", **{"count": 4, **settings})
    with pytest.raises(DataError, match=message):
        read_volume(path)


def test_a_fifth_axis_is_several_numbers_of_a_voxel(tmp_path):
    path = write_fourth(tmp_path / "a.nii", 20, 2.0, shape=(*draw().T.shape, 1, 20))
    volume = read_volume(path)
    assert volume.voxels.shape == (20, *draw().shape)
    np.testing.assert_array_equal(volume.voxels[7], draw(7))


@pytest.mark.parametrize(("change", "message"), DAMAGED_NIFTI)
def test_damaged_nifti_is_refused(change, message, tmp_path):
    pytest.importorskip("nibabel")
    path = write_nifti(tmp_path / "a.nii", draw())
    change(path)
    with pytest.raises(DataError, match=message):
        read_volume(path)


def test_damaged_gzip_and_bombs_are_refused(tmp_path):
    pytest.importorskip("nibabel")
    path = write_nifti(tmp_path / "a.nii.gz", draw(shape=(20, 20, 20)))
    packed = path.read_bytes()
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged"):
        read_volume(path)
    path.write_bytes(packed[:60] + b"\xff" * 60 + packed[120:])
    with pytest.raises(DataError, match="damaged"):
        read_volume(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="no NIfTI file"):
        read_volume(path)
    raw = bytearray(gzip.decompress(packed))
    struct.pack_into("<3h", raw, 42, 800, 800, 800)
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match=r"declares 1,024,000,000 bytes .* compressed"):
        read_volume(path)


@pytest.mark.parametrize(("fields", "message"), WRONG_METAIMAGE)
def test_a_wrong_metaimage_header_is_refused(fields, message, tmp_path):
    path = write_metaimage(tmp_path / "a.mhd", draw(), **fields)
    with pytest.raises(DataError, match=message):
        read_volume(path)


def test_a_metaimage_that_unpacks_to_more_or_less_is_refused(tmp_path):
    more = write_metaimage(tmp_path / "a.mhd", draw(), packed=True, DimSize="10 8 3")
    with pytest.raises(DataError, match="unpacks to more than the 480 bytes"):
        read_volume(more)
    less = write_metaimage(tmp_path / "b.mhd", draw(), packed=True, DimSize="10 8 7")
    with pytest.raises(DataError, match="unpacks to 960 instead of the 1,120 bytes"):
        read_volume(less)
    (tmp_path / "c.mhd").write_bytes(b"\x00\x01 no header")
    with pytest.raises(DataError, match="does not lead to ElementDataFile"):
        read_volume(tmp_path / "c.mhd")


def test_numpy_files_that_are_damaged_or_not_numbers_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[[object()]]]), allow_pickle=True)
    with pytest.raises(DataError, match="holds object, not real numbers"):
        read_volume(path)
    np.save(path, draw())
    shorten(path)
    with pytest.raises(DataError, match="declares 960 bytes of voxels and holds"):
        read_volume(path)
    path.write_bytes(b"no array")
    with pytest.raises(DataError, match="is no NumPy file, or is damaged"):
        read_volume(path)
    np.save(path, draw()[0])
    with pytest.raises(DataError, match=r"has the shape \(8, 10\)"):
        read_volume(path)
    archive = tmp_path / "b.npz"
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no NumPy file"):
        read_volume(archive)
    np.savez(archive, image=draw())
    with pytest.raises(DataError, match=r"has no array `voxels`, but image\.npy"):
        read_volume(archive)
    np.savez(archive, voxels=draw(), spacing_mm=[1, 2])
    with pytest.raises(DataError, match=r"spacing_mm has the shape \(2,\)"):
        read_volume(archive)
    np.savez(archive, voxels=draw(), spacing_mm=[1, 0, 1])
    with pytest.raises(DataError, match="spacing of 1 x 0 x 1 mm"):
        read_volume(archive)


def test_an_archive_that_declares_more_than_it_can_hold_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", draw())
    raw = (tmp_path / "a.npy").read_bytes().replace(b"(6, 8, 10)", b"(600,800,1000)"[:10])
    header = raw.replace(b"(600,800,1", b"(99,999,9)")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("voxels.npy", header)
    with pytest.raises(DataError, match=r"declares 1,780,218 bytes of voxels and holds"):
        read_volume(tmp_path / "b.npz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.npy", "a.npz"])
def test_whatever_bytes_are_changed_a_file_is_read_or_refused(name, tmp_path):
    path = tmp_path / name
    if ".nii" in name:
        pytest.importorskip("nibabel")
        write_nifti(path, draw())
    elif name == "a.mha":
        write_metaimage(path, draw(), local=True)
    else:
        save = {"a.npy": np.save, "a.npz": lambda at, it: np.savez_compressed(at, voxels=it)}[name]
        save(path, draw())
    good, rng = path.read_bytes(), np.random.default_rng(0)
    num_refused = 0
    for _ in range(150):
        raw = bytearray(good)
        for at in rng.integers(0, min(len(raw), 400), rng.integers(1, 8)).tolist():
            raw[at] = rng.integers(0, 256)
        path.write_bytes(raw[: rng.integers(1, len(raw) + 1)] if rng.random() < 0.2 else raw)
        try:
            read_volume(path, max_voxels=100_000)
        except DataError:
            num_refused += 1
    assert num_refused > 15


def test_what_is_no_volume_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_volume(tmp_path / "gone.nii")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is none of the formats of volumes"):
        read_volume(tmp_path / "a.png")
