import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek.datasets import DataLoader, VolumeDataset, kept_folder
from deepseek.errors import ConfigError, DataError

from .volumes import draw, write_metaimage, write_nifti, write_pairs

TEXT = "zscore+patch_8x8x8+flip+rotate_15+elastic_1+gamma_0.3+noise_0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("volumes") / "set")


@pytest.fixture(scope="module")
def dataset(folder):
    return VolumeDataset(folder, TEXT, patches_per_volume=2, cache="off")


def test_what_the_set_holds(dataset, folder):
    assert len(dataset) == 8
    assert dataset.class_names == ("background", "1", "2")
    assert dataset.spec.task == "segmentation"
    assert dataset.spec.transform == "zscore"
    assert dataset.spec.fields["inputs"].shape == (1, 8, 8, 8)
    counts = dataset.spec.class_counts
    assert sum(counts) == 2 * (9 * 10 * 11 + 10 * 11 * 12)
    assert repr(dataset).endswith("4 volumes, 3 classes, samples of 8x8x8 voxels)")
    assert dataset.describe(3) == str(folder / "images" / "01.npz")
    volume, labels = dataset.volume(1)
    assert volume.voxels.shape[1:] == labels.shape == (10, 11, 12)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_for_any_workers_and_after_a_resume(dataset, num_workers):
    def batches(loader):
        return [batch for _ in range(2) for batch in loader]

    whole = batches(DataLoader(dataset, batch_size=3, seed=1, num_workers=0))
    loader = DataLoader(dataset, batch_size=3, seed=1, num_workers=num_workers)
    head = [batch for batch, _ in zip(loader, range(2), strict=False)]
    resumed = DataLoader(dataset, batch_size=3, seed=1, num_workers=num_workers)
    resumed.load_state_dict({"epoch": 0, "position": 6})
    tail = batches(resumed)
    loader.close()
    resumed.close()
    assert len(whole) == len(head) + len(tail) == 6
    for expected, found in zip(whole, head + tail, strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not torch.equal(whole[0]["inputs"], whole[3]["inputs"])


def test_evaluation_gives_whole_volumes_of_one_shape(dataset):
    view = dataset.evaluation_view()
    assert len(view) == 4
    batch, bad = view.get_batch(range(4), epoch=5)
    assert bad == []
    assert batch["inputs"].shape == (4, 1, 16, 16, 16)  # multiples of 8, as the patch is
    assert int((batch["targets"][0] != -100).sum()) == 9 * 10 * 11
    volume, labels = dataset.volume(0)
    np.testing.assert_array_equal(batch["inputs"][0, :, :9, :10, :11], volume.voxels)
    np.testing.assert_array_equal(batch["targets"][0, :9, :10, :11], labels)
    assert len(view.evaluation_view()) == 4


def test_split_is_by_volume(dataset):
    train, val = dataset.split(0.25)
    assert (train.num_volumes, val.num_volumes, len(train), len(val)) == (3, 1, 6, 1)
    assert {train.describe(i) for i in range(6)}.isdisjoint({val.describe(0)})
    assert sum(train.spec.class_counts) + sum(val.spec.class_counts) == sum(
        dataset.spec.class_counts
    )
    with pytest.raises(ConfigError, match="share=2 is not between"):
        dataset.split(2)


def write_set(folder, names, rows=None):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for name in names:
            np.savez(folder / kind / f"{name}.npz", voxels=draw() > 0, spacing_mm=[1, 1, 1])
    if rows is None:
        return folder
    lines = [
        f"images/{name}.npz,labels/{name}.npz,{row}" for name, row in zip(names, rows, strict=True)
    ]
    (folder / "set.csv").write_text("\n".join(["image,label,patient", *lines]) + "\n")
    return folder / "set.csv"


def patients_of(data, num, patient):
    return {patient(Path(data.describe(number)).stem) for number in range(num)}


@pytest.mark.parametrize(
    ("names", "patient"),
    [
        ([f"patient{n:03}_frame{k}" for n in range(4) for k in range(3)], lambda s: s[:10]),
        ([f"sub-{n}_ses-{k}" for n in "abcd" for k in range(3)], lambda s: s[:5]),
    ],
)
def test_split_does_not_divide_the_volumes_of_a_patient(names, patient, tmp_path):
    data = VolumeDataset(write_set(tmp_path / "set", names), "patch_4x4x4", cache="off")
    assert "12 volumes of 4 patients" in repr(data)
    for seed in range(3):
        train, val = data.split(0.25, seed)
        both = [patients_of(part, len(part), patient) for part in (train, val)]
        assert (len(both[0]), len(both[1])) == (3, 1)
        assert not both[0] & both[1]
    with pytest.raises(DataError, match="12 volumes of 4 patients leaves a part empty"):
        data.split(0.95)


def test_folds_test_each_patient_once_and_never_divide_one(tmp_path):
    names = [f"patient{n:03}_frame{k}" for n in range(5) for k in range(2)]
    data = VolumeDataset(write_set(tmp_path / "set", names), "patch_4x4x4", cache="off")
    tested = []
    for fold in range(3):
        train, test = data.split_fold(fold, 3)
        both = [patients_of(part, len(part), lambda s: s[:10]) for part in (train, test)]
        assert not both[0] & both[1]
        assert len(both[0] | both[1]) == 5
        tested += sorted(both[1])
    assert sorted(tested) == [f"patient{n:03}" for n in range(5)]
    for fold, num_folds in ((0, 6), (3, 3), (0, 1)):
        with pytest.raises(ConfigError, match=f"fold={fold} of num_folds={num_folds}, of 5"):
            data.split_fold(fold, num_folds)


def test_a_column_says_whose_volumes_are_and_words_decide(tmp_path):
    names = [f"scan{number}" for number in range(6)]
    index = write_set(tmp_path / "set", names, "aabbcc")
    data = VolumeDataset(index, "patch_4x4x4", cache="off", split_by="patient")
    train, val = data.split(0.3)
    assert (train.num_volumes, val.num_volumes) == (4, 2)
    volumes = VolumeDataset(index, "patch_4x4x4", cache="off", split_by="volume")
    assert [part.num_volumes for part in volumes.split(0.5)] == [3, 3]
    alone = VolumeDataset(tmp_path / "set", "patch_4x4x4", cache="off")
    assert "patients" not in repr(alone)
    with pytest.raises(DataError, match="say whose volumes these are"):
        VolumeDataset(tmp_path / "set", "patch_4x4x4", cache="off", split_by="patient")
    index.write_text(index.read_text().replace(",b", ","))
    with pytest.raises(DataError, match="line 4: patient is empty"):
        VolumeDataset(index, "patch_4x4x4", cache="off")
    with pytest.raises(ConfigError, match="split_by='scanner'"):
        VolumeDataset(tmp_path / "set", "patch_4x4x4", cache="off", split_by="scanner")


def test_names_of_a_set_are_no_patients(tmp_path):
    names = [f"hippocampus_{number:03}" for number in range(4)]
    data = VolumeDataset(write_set(tmp_path / "set", names), "patch_4x4x4", cache="off")
    assert "4 volumes, 2 classes" in repr(data)
    with pytest.raises(DataError, match="say whose"):
        VolumeDataset(tmp_path / "set", "patch_4x4x4", cache="off", split_by="patient")


def test_a_volume_is_made_anew_when_the_file_that_its_header_names_changes(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number, voxels in enumerate((draw(), draw(1))):
            voxels = voxels if name == "images" else (voxels > 0).astype(np.uint8)
            path = tmp_path / "set" / name / f"{number}.mhd"
            write_metaimage(path, voxels, ElementDataFile=f"voxels-{number}.bin")
            path.with_suffix(".raw").rename(path.with_name(f"voxels-{number}.bin"))
    found = []
    for sign in (1, -1):
        (tmp_path / "set" / "images" / "voxels-0.bin").write_bytes((sign * draw()).tobytes())
        dataset = VolumeDataset(tmp_path / "set", "patch_4x4x4", cache=tmp_path / "cache")
        found.append(dataset.volume(0)[0].voxels)
    np.testing.assert_array_equal(found[0], -found[1])


def test_prepared_volumes_are_kept_and_made_anew_when_a_file_changes(folder, tmp_path, monkeypatch):
    import deepseek.datasets.volume_store as store

    made = []
    original = store._make
    monkeypatch.setattr(
        store, "_make", lambda pair, *rest: made.append(pair.image.name) or original(pair, *rest)
    )
    copy = write_pairs(tmp_path / "set")
    first = VolumeDataset(copy, TEXT, cache=tmp_path / "cache")
    again = VolumeDataset(copy, "zscore+patch_4x4x4", cache=tmp_path / "cache")
    assert sorted(made) == ["00.npz", "01.npz", "02.npz", "03.npz"]
    made.clear()
    assert again[0]["inputs"].shape == (1, 4, 4, 4)
    np.savez(copy / "images" / "02.npz", voxels=np.random.default_rng(9).normal(size=(9, 10, 11)))
    VolumeDataset(copy, TEXT, cache=tmp_path / "cache")
    assert made == ["02.npz"]
    uncached = VolumeDataset(folder, TEXT, cache="off")
    assert torch.equal(first[1]["inputs"], uncached[1]["inputs"])
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0  # it shows what the originals show


def test_labels_may_be_stored_along_other_axes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels = (draw() > 0).astype(np.uint8)
    affine = np.diag([-1.0, -1, 2, 1])
    for name, turn in (("a", None), ("b", nibabel.as_closest_canonical)):
        for folder in ("images", "labels"):
            (tmp_path / name / folder).mkdir(parents=True)
        write_nifti(tmp_path / name / "images" / "1.nii", draw(), affine)
        file = write_nifti(tmp_path / name / "labels" / "1.nii", labels, affine)
        if turn is not None:
            turned = turn(nibabel.Nifti1Image(labels.T, affine))
            nibabel.save(turned, file)
    one, other = (VolumeDataset(tmp_path / name, "patch_4x4x4", cache="off") for name in "ab")
    np.testing.assert_array_equal(one.volume(0)[1], other.volume(0)[1])
    moved = nibabel.Nifti1Image(labels.T, np.diag([1.0, 1, 2, 1]))  # the same voxels, mirrored
    nibabel.save(moved, tmp_path / "b" / "labels" / "1.nii")
    with pytest.raises(DataError, match=r"lies up to .* mm beside its volume"):
        VolumeDataset(tmp_path / "b", "patch_4x4x4", cache="off")


def test_labels_whose_spacing_differs_by_rounding_have_the_shape_of_their_volume(tmp_path):
    voxels = draw(shape=(5, 8, 10))
    for name, step in (("images", 0.70000001), ("labels", 0.69999999)):
        (tmp_path / name).mkdir()
        found = voxels if name == "images" else (voxels > 0).astype(np.uint8)
        np.savez(tmp_path / name / "a.npz", voxels=found, spacing_mm=[step, 1, 1])
    data = VolumeDataset(tmp_path, "spacing_1x1x1+patch_4x4x4", cache="off")
    volume, labels = data.volume(0)
    assert volume.voxels.shape[1:] == labels.shape == (4, 8, 10)


def test_the_mode_of_a_folder_that_was_there_stays(folder, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    VolumeDataset(folder, TEXT, cache=shared)
    assert shared.stat().st_mode & 0o777 == 0o775
    kept = list(shared.iterdir())
    assert len(kept) == 4
    assert all(each.stat().st_mode & 0o077 == 0 for each in kept)


def test_what_is_prepared_is_counted_and_a_disk_that_is_too_small_is_said(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(kept_folder, "REPORT_EVERY_S", 0.0)
    VolumeDataset(folder, TEXT, cache=tmp_path / "roomy")
    assert "preparing volumes: 4 of 4 volumes" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.warns(UserWarning, match=r"4 prepared volumes take about .*; set data.cache"):
        VolumeDataset(folder, TEXT, cache=tmp_path / "full")
    VolumeDataset(folder, TEXT, cache=tmp_path / "full")  # nothing is left to be made


def test_a_cache_that_cannot_be_written_is_memory(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="kept in memory: .* cannot be written"):
        data = VolumeDataset(folder, TEXT, cache=tmp_path / "file")
    assert len(data) == 4


def test_an_index_with_a_byte_order_mark_is_read_and_other_encodings_are_refused(folder, tmp_path):
    rows = f"image,label\n{folder}/images/00.npz,{folder}/labels/00.npz\n"
    index = tmp_path / "index.csv"
    index.write_text(rows, encoding="utf-8-sig")
    assert VolumeDataset(index, TEXT, cache="off").num_volumes == 1
    for encoding in ("utf-16", "latin-1"):
        index.write_text(rows + "\u00e9.npz,b.npz\n", encoding=encoding)
        with pytest.raises(DataError, match="is no CSV file"):
            VolumeDataset(index, TEXT, cache="off")


def test_an_index_file_and_dataset_json_are_read(folder, tmp_path):
    rows = "".join(f"{folder}/images/{i:02}.npz,{folder}/labels/{i:02}.npz\n" for i in (3, 1))
    (tmp_path / "index.csv").write_text("image,label\n" + rows)
    listed = VolumeDataset(tmp_path / "index.csv", TEXT, cache="off")
    assert [listed.describe(i)[-6:] for i in range(2)] == ["03.npz", "01.npz"]
    copy = write_pairs(tmp_path / "set")
    for labels in ({"0": "background", "1": "a", "2": "b"}, {"b": 2, "background": 0, "a": 1}):
        (copy / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert VolumeDataset(copy, TEXT, cache="off").class_names == ("background", "a", "b")


@pytest.mark.parametrize("name", ["voxels.npy", "affine.npy", "volume.json"])
def test_a_volume_of_which_a_file_was_deleted_is_made_anew(folder, tmp_path, name):
    expected = VolumeDataset(folder, TEXT, cache=tmp_path)[0]["inputs"]
    for path in tmp_path.rglob(name):
        path.unlink()
    assert torch.equal(VolumeDataset(folder, TEXT, cache=tmp_path)[0]["inputs"], expected)
    assert len(list(tmp_path.rglob(name))) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_the_loader_knows_volumes(folder):
    loader = DataLoader(input_format="volume", batch_size=2, transform=TEXT)
    loader.load(folder, cache="off")
    assert next(iter(loader))["inputs"].shape == (2, 1, 8, 8, 8)


def test_what_whole_volumes_would_leave_out_is_refused(folder):
    for text, count, said in (
        ("zscore+flip+noise_0.1", 1, "flip, noise would be ignored"),
        ("zscore", 4, "patches_per_volume=4 would be ignored"),
    ):
        with pytest.raises(ConfigError, match=said):
            VolumeDataset(folder, text, patches_per_volume=count, cache="off")
    assert len(VolumeDataset(folder, "zscore", cache="off")) == 4


def test_arguments_out_of_their_range_are_named_together(folder):
    with pytest.raises(ConfigError, match=r"foreground_share=2 .*; patches_per_volume=0"):
        VolumeDataset(folder, foreground_share=2, patches_per_volume=0)


def damage(folder, case):
    """Make a good set a bad one."""
    image, labels = folder / "images" / "01.npz", folder / "labels" / "01.npz"
    voxels, known = np.load(image)["voxels"], np.load(labels)["voxels"]
    if case == "no labels":
        labels.unlink()
    elif case == "no image":
        image.unlink()
    elif case == "twice":
        np.save(folder / "images" / "01.npy", voxels)
    elif case == "another shape":
        np.savez(labels, voxels=known[:-1])
    elif case == "another place":
        np.savez(labels, voxels=known, spacing_mm=np.array([1, 1, 1.5]))
    elif case == "fractions":
        np.savez(labels, voxels=known + 0.5)
    elif case == "negative":
        np.savez(labels, voxels=known.astype(np.int16) - 1)
    elif case == "colour labels":
        np.savez(labels, voxels=np.stack([known] * 3))
    elif case == "constant":
        np.savez(image, voxels=np.zeros_like(voxels))
    elif case == "nan":
        np.savez(image, voxels=np.where(known, np.nan, voxels.astype(np.float32)))
    elif case == "channels":
        np.savez(image, voxels=np.stack([voxels] * 2))
    elif case == "empty masks":
        for path in (folder / "labels").iterdir():
            np.savez(path, voxels=np.zeros_like(np.load(path)["voxels"]))
    elif case in ("pictures", "gaps"):
        for path in (folder / "labels").iterdir():
            labels = np.load(path)["voxels"]
            np.savez(path, voxels=3 * labels if case == "gaps" else np.uint8(255) * (labels > 0))
    elif case == "bomb":
        np.savez_compressed(image, voxels=np.zeros((300, 300, 300), np.int8))
    elif case == "class beyond":
        (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "a"}}')
    elif case == "gap":
        (folder / "dataset.json").write_text('{"labels": {"0": "background", "2": "a"}}')
    elif case == "no json":
        (folder / "dataset.json").write_text('{"labels": [1, 2')
    elif case == "nothing":
        for path in [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]:
            path.unlink()
    elif case == "no folders":
        (folder / "images").rename(folder / "pictures")


BROKEN_SETS = [
    ("no labels", "1 of 4 volumes in .* have no labels: 01"),
    ("no image", "1 of 4 labels in .* have no volumes: 01"),
    ("twice", "has 01 twice: 01.npy and 01.npz"),
    ("another shape", "01.npz has 9 x 11 x 12 voxels, its volume 10 x 11 x 12"),
    ("another place", r"lies up to 5\.5 mm beside its volume"),
    ("fractions", "labels from 0.5 to 2.5 that are not all class numbers"),
    ("negative", "labels from -1 to 1 that are not all class numbers"),
    ("colour labels", "has 3 channels of labels"),
    ("constant", "every voxel is 0: there is nothing to see"),
    ("nan", r"128 of 1,320 voxels are NaN or infinite"),
    ("channels", "volumes have 1 and 2 channels"),
    ("empty masks", "no voxel has another label than 0"),
    ("pictures", "labels are 0 and 255, the black and white of a picture"),
    ("gaps", "labels go up to 6, and 4 below it never occur, such as 1, 2, 4"),
    ("bomb", r"declares 300 x 300 x 300 voxels, more than max_voxels=1,000,000"),
    ("class beyond", "holds the label 2, beyond the 2 class_names"),
    ("gap", r"numbers its labels \[0, 2\], not 0, 1, 2"),
    ("no json", "does not say its labels as number -> name"),
    ("nothing", "images holds no volumes"),
    ("no folders", "neither a folder with images/ and labels/ nor a CSV file"),
]
"""How a set is damaged, and what is said of it."""


@pytest.mark.parametrize(("case", "message"), BROKEN_SETS)
def test_a_set_that_cannot_be_learnt_from_is_refused_with_the_reason(case, message, tmp_path):
    folder = write_pairs(tmp_path / "set")
    damage(folder, case)
    with pytest.raises(DataError, match=message):
        VolumeDataset(folder, TEXT, cache="off", max_voxels=1_000_000)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("picture,label\n", "has no column 'image', but picture, label"),
        ("image,label\n", "lists no volumes"),
        ("image,label\na.npy,\n", "line 2: a path is empty"),
        ("image,label\na.npy,b.npy\n", "line 2: a.npy does not exist"),
        ("image,label\n../a.npy,b.npy\n", "leads out of the folder of the index"),
    ],
)
def test_an_index_that_is_wrong_is_refused(rows, message, tmp_path):
    (tmp_path / "index.csv").write_text(rows)
    with pytest.raises(DataError, match=message):
        VolumeDataset(tmp_path / "index.csv", TEXT, cache="off")
