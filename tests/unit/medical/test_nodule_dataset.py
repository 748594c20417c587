import numpy as np
import pytest
import torch

from deepseek.datasets import DataLoader
from deepseek.errors import ConfigError, DataError
from deepseek.medical import NoduleDataset
from deepseek.medical.nodule_cubes import NoduleCubes, read_nodule_cubes
from deepseek.medical.nodule_dataset import beside_nodule, mirrored


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cubes.npz"
    np.savez(path, **arrays())
    return path


def arrays():
    """Ten cubes of 27 mm with a bright ball each, off the middle; of nine patients."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(27)] * 3, indexing="ij"))
    centers = rng.integers(11, 16, (10, 3))
    mask = np.stack([((grid - c.reshape(3, 1, 1, 1)) ** 2).sum(0) <= 9 for c in centers])
    image = rng.integers(0, 90, mask.shape) + 150 * mask
    names = np.array([f"p{min(number, 8)}_nod{number}" for number in range(10)])
    malignancy = np.array([0, 1, 2, 3, 4, 5, 1, 2, 4, 5], np.uint8)
    return {
        "image": image.astype(np.uint8), "mask": mask, "name": names, "malignancy": malignancy,
    }  # fmt: skip


def make(file, transform="patch_16x16x16+flip+rotate_20+scale_0.2+noise_0.05", **options):
    return NoduleDataset(file, transform, **options)


def test_cubes_are_read(file):
    cubes = read_nodule_cubes(file)
    assert len(cubes) == 10
    assert cubes.voxels.dtype == np.float32
    assert 0 <= cubes.voxels.min() <= cubes.voxels.max() <= 1
    assert np.isnan(cubes.scores["malignancy"][0])
    assert cubes.scores["malignancy"][5] == 5
    assert cubes.diameters_mm == pytest.approx((6 * 123 / np.pi) ** (1 / 3))
    assert len(read_nodule_cubes(file.parent)) == 10


def test_folds_divide_patients(file):
    cubes = read_nodule_cubes(file)
    folds = cubes.folds(3)
    assert folds[8] == folds[9]  # one patient
    assert sorted(set(folds)) == [0, 1, 2]
    assert np.bincount(folds).min() >= 3
    parts = [make(file, targets="masks").split_fold(fold, 3) for fold in range(3)]
    validated = np.concatenate([val.rows for _, val in parts])
    assert sorted(validated) == list(range(10))
    for train, val in parts:
        assert not set(cubes.patients[train.rows]) & set(cubes.patients[val.rows])


def test_a_sample_is_a_function_of_seed_epoch_and_index(file):
    data, same, other = make(file), make(file), make(file, seed=1)
    batch = data.get_batch([3, 1], 2)[0]
    assert torch.equal(batch["inputs"][1], same.get_batch([1], 2)[0]["inputs"][0])
    assert not torch.equal(batch["inputs"][1], same.get_batch([1], 3)[0]["inputs"][0])
    assert not torch.equal(batch["inputs"][1], other.get_batch([1], 2)[0]["inputs"][0])
    view, again = make(file).evaluation_view(), other.evaluation_view()
    assert torch.equal(view.get_batch([1], 0)[0]["inputs"], again.get_batch([1], 9)[0]["inputs"])
    assert view[1]["inputs"].shape == (1, 16, 16, 16)


def test_a_loader_goes_on_where_it_was(file):
    def loader():
        return DataLoader(batch_size=3, seed=4, num_workers=0).bind(make(file))

    whole = [batch["inputs"] for batch in loader()]
    stopped = loader()
    iterator = iter(stopped)
    next(iterator), next(iterator)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    for rest, expected in zip(resumed, whole[2:], strict=True):
        assert torch.equal(rest["inputs"], expected)


def test_centers_lie_on_the_nodule_however_it_is_turned(file):
    data = make(file, negative_share=0.0, crops_per_cube=4)
    batch = data.get_batch(range(40), 0)[0]
    places = set()
    for inputs, ((*center, diameter),) in zip(batch["inputs"], batch["targets"], strict=True):
        places.add(tuple(int(at) for at in center))
        if diameter < 0:  # turned out of the crop
            continue
        d, h, w = (round(float(at)) for at in center)
        assert inputs[0, d, h, w] > 0.5
        assert 6.1 / 1.3 < diameter < 6.2 * 1.3
    assert len(places) > 20  # not in the middle on purpose
    assert (batch["targets"][..., 3] > 0).float().mean() > 0.8


def test_masks_cover_the_nodule(file):
    batch = make(file, targets="masks", negative_share=0.0).get_batch(range(10), 0)[0]
    assert batch["targets"].shape == (10, 16, 16, 16)
    bright = batch["inputs"][:, 0] > 0.5
    overlap = 2 * (bright & (batch["targets"] == 1)).sum() / (bright.sum() + batch["targets"].sum())
    assert overlap > 0.9
    assert make(file, targets="masks").spec.class_names == ("background", "nodule")


def test_masks_of_negative_crops_are_empty(file):
    content = dict(np.load(file))
    content |= {"negative": np.full((2, 27, 27, 27), 9, np.uint8), "negative_name": ["a_1", "b_1"]}
    np.savez(file, **content)
    batch = make(file, targets="masks", negative_share=1.0).get_batch(range(10), 0)[0]
    assert batch["targets"].shape == (10, 16, 16, 16)
    assert not batch["targets"].any()
    assert batch["inputs"].max() < 0.6
    batch = make(file, targets="masks", negative_share=0.5, crops_per_cube=4).get_batch(
        range(40), 0
    )
    shown = batch[0]["targets"].flatten(1).any(1)
    assert 10 < shown.sum() < 30
    assert make(file, targets="masks", negative_share=1.0).evaluation_view()[0]["targets"].any()


def test_negative_crops_hold_nothing_and_lie_apart(file):
    view = make(file).evaluation_view()
    assert len(view) == 20
    batch = view.get_batch(range(20), 0)[0]
    assert (batch["targets"][:10, 0, 3] > 0).all()
    assert (batch["targets"][10:, 0, 3] < 0).all()
    assert batch["inputs"][10:].max() < 0.5
    assert (batch["box"][:10] == torch.tensor([0, 16])).all()
    sizes = (batch["box"][10:, :, 1] - batch["box"][10:, :, 0]).prod(1)
    assert (sizes > 0).all()
    assert (sizes < 16**3).any()


def test_a_negative_crop_is_more_than_12_mm_away(file):
    from deepseek.datasets.randomness import Draws

    for number, mask in enumerate(read_nodule_cubes(file).masks):
        middle = np.argwhere(mask).mean(0)
        for patch in (16, 24):
            axis, (low, high), start = beside_nodule(mask, [patch] * 3, 1.0, Draws(number))
            assert abs(start + (patch - 1) / 2 - middle[axis]) > 12
            assert not np.take(mask, range(low, high), axis).any()
            assert min(start + patch, high) > max(start, low)


@pytest.mark.parametrize("place", [3, 4, 8, 19, 22, 23])
def test_a_nodule_at_a_face_is_not_mirrored_into_its_crop(place):
    grid = np.stack(np.meshgrid(*[np.arange(27)] * 3, indexing="ij"))
    ball = ((grid - np.reshape([place, 13, 13], (3, 1, 1, 1))) ** 2).sum(0) <= 9
    cubes = NoduleCubes(ball[None].astype(np.float32), ball[None].astype(np.uint8), ("p_0",), {})
    data = NoduleDataset(cubes, "patch_16x16x16", negative_share=0.0, crops_per_cube=60)
    batch, _ = data.get_batch(range(60), 0)
    assert batch["inputs"].sum((1, 2, 3, 4)).max() <= ball.sum()
    assert batch["targets"][:, 0, 3].max() <= cubes.diameters_mm[0] * 1.001
    reached = batch["box"][:, 0] != torch.tensor([0, 16])
    assert reached.any() == (place in (8, 19))  # where there is room, the cube is left
    turned = NoduleDataset(cubes, "patch_16x16x16+rotate_20", negative_share=0.0, crops_per_cube=60)
    batch, _ = turned.get_batch(range(60), 0)
    assert batch["targets"][:, 0, 3].max() <= cubes.diameters_mm[0] * 1.05


def test_a_row_is_mirrored_at_both_ends():
    assert mirrored(np.arange(-4, 8), 4).tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert mirrored(np.arange(-2, 3), 1).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((10, 27, 27, 27))}, "a mask is empty"),
        ({"mask": np.ones((10, 27, 27, 27)) * 2}, "mask goes up to 2"),
        ({"mask": np.ones((10, 9, 9, 9))}, "do not fit"),
        ({"image": np.full((10, 27, 27, 27), -900.0)}, "-900 to -900"),
        ({"name": np.arange(10)}, "name int64"),
        ({"malignancy": np.ones(3)}, "malignancy has the shape"),
        ({"malignancy": np.arange(10)}, "malignancy is 1 to 9, not 1 to 5"),
        ({"image": np.array([None])}, "objects"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **{**arrays(), **change})
    with pytest.raises(DataError, match=message if message != "objects" else "not real numbers"):
        read_nodule_cubes(tmp_path / "bad.npz")


def test_files_that_are_missing_damaged_or_too_large_are_refused(file, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_nodule_cubes(tmp_path / "none.npz")
    with pytest.raises(DataError, match="more than max_voxels=1,000"):
        read_nodule_cubes(file, max_voxels=1000)
    np.savez(tmp_path / "else.npz", voxels=np.zeros(3))
    with pytest.raises(DataError, match="no array `image`"):
        read_nodule_cubes(tmp_path / "else.npz")
    with pytest.raises(DataError, match=r"holds 2 \.npz files"):
        read_nodule_cubes(tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        read_nodule_cubes(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "flip"}, "has no patch"),
        ({"transform": "zscore+patch_8x8x8"}, "cubes are prepared"),
        ({"transform": "patch_8x8x8+scale_0.3"}, "scale must be below 0.26 for centers"),
        ({"transform": "patch_32x8x8"}, r"patch_32x8x8 of cubes of \(27, 27, 27\)"),
        ({"targets": "boxes"}, "targets='boxes'"),
        ({"negative_share": 2.0}, "negative_share=2.0"),
        ({"crops_per_cube": 0}, "crops_per_cube=0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message, file):
    with pytest.raises(ConfigError, match=message):
        make(file, **options)


def test_folds_that_do_not_exist_are_refused(file):
    with pytest.raises(ConfigError, match=r"fold=5 is not in 0\.\.4"):
        make(file).split_fold(5)
    with pytest.raises(ConfigError, match="num_folds=10 of 9 patients"):
        make(file).split_fold(0, 10)


def test_a_patient_is_what_stands_before_the_first_underscore():
    cubes = NoduleCubes(np.zeros((2, 1, 1, 1)), np.ones((2, 1, 1, 1)), ("7_a", "7_b"), {})
    assert cubes.patients.tolist() == ["7", "7"]


def test_scores_stand_beside_centres_where_they_are_known(file):
    data = make(file, scores=["malignancy"])
    batch, _ = data.evaluation_view().get_batch(range(len(data)), 0)
    known = np.tile(data.cubes.scores["malignancy"], 2)[: len(data)]
    np.testing.assert_array_equal(batch["score.malignancy"].numpy(), known.astype(np.float32))
    assert data.spec.fields["score.malignancy"].shape == ()
    with pytest.raises(ConfigError, match="'malignant' is unknown"):
        make(file, scores=["malignant"])
    with pytest.raises(DataError, match="the cubes have no lobulation"):
        make(file, scores=["lobulation"])
    with pytest.raises(ConfigError, match="would be ignored with targets='masks'"):
        make(file, scores=["malignancy"], targets="masks")


def test_masks_may_be_scaled_by_more_than_centres(file):
    assert make(file, "patch_16x16x16+scale_0.5", targets="masks", negative_share=0.0)[0][
        "targets"
    ].any()
