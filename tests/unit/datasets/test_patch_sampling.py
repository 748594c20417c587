import numpy as np
import pytest

from deepseek.datasets.patch_sampling import choose_start, cut, sample_patch
from deepseek.datasets.randomness import Draws
from deepseek.datasets.volume_transforms import parse_volume_transform

SHAPE = (20, 22, 24)


@pytest.fixture(scope="module")
def volume():
    """A ball of class 1 that is 1 where the rest is 0, off the middle."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    center = np.array([8, 12, 14]).reshape(3, 1, 1, 1)
    labels = (((grid - center) ** 2).sum(0) <= 16).astype(np.uint16)
    places = np.argwhere(labels)
    foreground = np.column_stack([np.ones(len(places), int), places]).astype(np.int32)
    return labels[None].astype(np.float32), labels, foreground


def sample(volume, text, *key, share=1.0):
    transform = parse_volume_transform(text)
    return sample_patch(*volume, transform, (1.0, 1.0, 1.0), share, Draws(*key))


def test_a_patch_lies_inside_and_around_the_foreground_as_often_as_asked(volume):
    foreground = volume[2]
    for share, least, most in ((0.0, 0.05, 0.6), (1.0, 1.0, 1.0)):
        hits = 0
        for number in range(200):
            start = choose_start(SHAPE, (6, 6, 6), foreground, share, Draws(number))
            assert all(0 <= a <= size - 6 for a, size in zip(start, SHAPE, strict=True))
            hits += cut(volume[0], volume[1], start, (6, 6, 6))[1].max() > 0
        assert least <= hits / 200 <= most


def test_rare_classes_are_as_often_in_the_middle_as_frequent_ones():
    foreground = np.array([[1, 9, 9, 9]] * 99 + [[2, 2, 2, 2]])
    starts = [choose_start(SHAPE, (2, 2, 2), foreground, 1.0, Draws(i))[0] for i in range(300)]
    assert np.mean(np.array(starts) == 1) == pytest.approx(0.5, abs=0.1)


def test_outside_the_volume_inputs_are_0_and_labels_are_not_counted(volume):
    found, known = cut(np.ones_like(volume[0]), volume[1], (-2, -2, 20), (24, 8, 8))
    assert (known[:2] == -100).all()
    assert (known[:, :, 4:] == -100).all()
    assert found.sum() == (known != -100).sum() == 20 * 6 * 4


@pytest.mark.parametrize("text", ["rotate_45", "scale_0.5", "elastic_2", "rotate_30+scale_0.3"])
def test_labels_go_where_the_voxels_go(text, volume):
    for number in range(5):
        found, known = sample(volume, f"patch_16x16x16+flip+{text}", number)
        assert found.shape == (1, 16, 16, 16)
        inside = known != -100
        agree = ((found[0] > 0.5) == (known == 1))[inside].mean()
        assert agree > 0.97
        assert (known == 1).any()


def test_what_is_not_moved_is_interpolated_to_itself(volume):
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    still = sample((voxels, *volume[1:]), "patch_8x10x12", 3)
    moved = sample((voxels, *volume[1:]), "patch_8x10x12+rotate_0.000001", 3)
    np.testing.assert_allclose(moved[0], still[0], atol=1e-3)
    np.testing.assert_array_equal(moved[1], still[1])


def test_a_volume_is_turned_in_millimetres():
    labels = np.zeros((9, 41, 41), np.uint16)
    labels[4] = 1  # a slab one slice of 4 mm thick
    transform = parse_volume_transform("patch_9x41x41+rotate_90")
    foreground = np.array([[1, 4, 20, 20]], np.int32)
    thick = []
    for number in range(12):
        found, _ = sample_patch(
            labels[None].astype(np.float32), labels, foreground, transform, (4.0, 1.0, 1.0), 1.0,
            Draws(number),
        )  # fmt: skip
        volume_mm = found.sum() * 4
        thick.append(volume_mm)
    # the slab is cut by the patch, never stretched: a plane of 4 mm through 36 x 41 x 41 mm
    assert max(thick) < 4 * np.hypot(41, 41) * 41 * 1.05
    assert min(thick) > 4 * 36 * 36 * 0.9


def test_intensity_steps_change_every_second_patch_within_their_limits(volume):
    voxels = np.full_like(volume[0], 2.0)
    voxels[0, 0, 0, 0] = 0.0
    for text, low, high in (("brightness_0.2", 1.6, 2.4), ("noise_0.1", 1.3, 2.7)):
        found = [sample((voxels, *volume[1:]), f"patch_4x4x4+{text}", i)[0] for i in range(40)]
        changed = [not (patch == 2.0).all() for patch in found]
        assert 8 <= sum(changed) <= 32
        assert low <= min(map(np.min, found)) <= max(map(np.max, found)) <= high
    ramp = np.broadcast_to(np.linspace(-1, 1, 24, dtype=np.float32), (1, *SHAPE))
    bent = [sample((ramp, *volume[1:]), "patch_20x22x24+gamma_0.5", i)[0] for i in range(20)]
    for patch in bent:
        assert (patch.min(), patch.max()) == pytest.approx((-1, 1), abs=1e-6)
        assert (np.diff(patch[0, 0, 0]) > 0).all()
    assert len({float(patch[0, 0, 0, 11]) for patch in bent}) > 3


@pytest.mark.parametrize(
    "step", ["rotate_20", "scale_0.3", "elastic_2", "noise_0.1", "gamma_0.5", "brightness_0.2"]
)
def test_a_step_is_done_as_often_as_its_probability_says(step, volume):
    voxels = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)

    def count(text):
        found = [sample((voxels, *volume[1:]), text, i, share=0.0)[0] for i in range(100)]
        plain = [sample((voxels, *volume[1:]), "patch_4x4x4", i, share=0.0)[0] for i in range(100)]
        return sum(not np.array_equal(a, b) for a, b in zip(found, plain, strict=True))

    assert count(f"patch_4x4x4+{step}_0") == 0
    assert 10 <= count(f"patch_4x4x4+{step}_0.25") <= 40
    assert count(f"patch_4x4x4+{step}_1") == 100


@pytest.mark.parametrize(("step", "chance"), [("elastic_2", 1), ("noise_0.1", 0.5)])
def test_the_probability_that_is_left_out_is_that_of_the_table(step, chance, volume):
    short, long = (sample(volume, f"patch_8x8x8+{t}", 5) for t in (step, f"{step}_{chance}"))
    np.testing.assert_array_equal(short[0], long[0])
