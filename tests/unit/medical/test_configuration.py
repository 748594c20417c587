import numpy as np
import pytest
from tests.unit.datasets.volumes import write_pairs

from deepseek.datasets import VolumeDataset
from deepseek.datasets.volume import SPACING_LIMITS_MM
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import ConfigError, DataError
from deepseek.medical import Fingerprint, Means, configure, take_fingerprint
from deepseek.medical.topology import plan_levels
from deepseek.models.unet3d import UNet3D

GIB = 2**30
LAPTOP = Means("cpu", 16 * GIB, 120e9, has_bf16=True)
V100 = Means("cuda", 16 * GIB, None, has_bf16=True)
H100 = Means("cuda", 80 * GIB, None, has_bf16=True)
HIPPOCAMPUS = [(1, 1, 1)], [(36, 50, 35)]
CHEST = [(1.25, 0.7, 0.7), (2.5, 0.6, 0.6), (1.0, 0.8, 0.8)], [(300, 512, 512)] * 3
PROSTATE = [(6, 0.7, 0.7), (4, 0.6, 0.6), (6, 0.8, 0.8)], [(20, 320, 320)] * 3


def make(spacings, shapes, modality="other", names=("background", "lesion"), count=100):
    return Fingerprint(
        "here", count, np.array(spacings, float), np.array(shapes), 1, modality, -900.2, -100.0,
        200.3, names, (1.0,) * (len(names) - 1), (1.0,) * (len(names) - 1),
    )  # fmt: skip


def test_a_fingerprint_is_of_what_the_volumes_hold(tmp_path):
    write_pairs(tmp_path, count=4, num_classes=3)
    found = take_fingerprint(tmp_path)
    assert found.num_volumes == len(found.shapes) == 4
    assert found.spacings_mm == pytest.approx(np.ones((4, 3)))
    assert sorted(map(tuple, found.shapes.tolist()))[0] == (9, 10, 11)
    assert found.modality == "other"
    assert 60 < found.median < 240
    assert found.class_names == ("background", "1", "2")
    assert found.class_ml[1] == pytest.approx(0.064)  # a box of 4 voxels of 1 mm
    assert found.class_shares == (1.0, 1.0)
    assert "4 volumes, 4 read" in found.describe()
    assert len(take_fingerprint(tmp_path, max_volumes=2).shapes) == 2


def test_a_fingerprint_refuses_masks_without_a_class_though_classes_are_named(tmp_path):
    write_pairs(tmp_path, count=2, num_classes=1)
    with pytest.raises(DataError, match="no voxel has another label than 0"):
        take_fingerprint(tmp_path, class_names=["background", "nodule"])


def test_a_fingerprint_refuses_labels_of_another_shape(tmp_path):
    write_pairs(tmp_path)
    path = tmp_path / "labels" / "01.npz"
    np.savez(path, voxels=np.load(path)["voxels"][:-1])
    with pytest.raises(DataError, match=r"01\.npz has 9 x 11 x 12 voxels, its volume 10 x"):
        take_fingerprint(tmp_path)


def test_numbers_far_below_zero_are_ct(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    np.save(tmp_path / "images" / "a.npy", (1040 * labels.astype(np.int16) - 1000))
    np.save(tmp_path / "labels" / "a.npy", labels)
    found = take_fingerprint(tmp_path)
    assert (found.modality, found.low, found.high) == ("ct", 40, 40)
    assert configure(found, means=LAPTOP).steps[0] == "window_40_41"


def test_only_where_every_channel_is_ct_the_volume_is(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    ct = 1040 * labels.astype(np.float32) - 1000
    np.save(tmp_path / "labels" / "a.npy", labels)
    for second, modality, step in ((5.0 * labels, "other", "zscore"), (ct, "ct", "window_40_41")):
        np.save(tmp_path / "images" / "a.npy", np.stack([ct, second]).astype(np.float32))
        found = take_fingerprint(tmp_path)
        assert (found.channels, found.modality) == (2, modality)
        assert configure(found, means=LAPTOP).steps[0] == step


def test_a_class_that_is_in_volumes_not_read_has_its_number(tmp_path):
    write_pairs(tmp_path, count=3, num_classes=2)
    path = tmp_path / "labels" / "00.npz"
    np.savez(path, voxels=3 * np.load(path)["voxels"])
    found = take_fingerprint(tmp_path, max_volumes=1)
    assert found.class_names == ("background", "1", "2", "3")
    assert found.class_shares == (0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="labels go up to 3, and 1 below it never occur, such as 2"):
        take_fingerprint(tmp_path)


@pytest.mark.parametrize("size", SPACING_LIMITS_MM)
def test_the_spacing_of_any_volume_is_one_of_a_transform(size):
    chosen = configure(make([(size,) * 3], [(36, 50, 35)]), means=LAPTOP)
    assert parse_volume_transform(chosen.transform).spacing_mm == (size,) * 3


def test_levels_are_those_of_nnunet():
    cube = plan_levels((128, 128, 128), (1, 1, 1))
    assert cube.strides == ((2, 2, 2),) * 5
    assert cube.multiple == (32, 32, 32)
    # nnU-Net's plan for the Decathlon's hippocampus: 40 x 56 x 40, three halvings
    small = plan_levels((36, 50, 35), (1, 1, 1))
    assert (small.patch, len(small.strides)) == ((40, 56, 40), 3)
    thick = plan_levels((20, 256, 256), (6, 0.7, 0.7))
    assert thick.kernels[0] == (1, 3, 3)
    assert thick.strides[:3] == ((1, 2, 2),) * 3
    assert thick.kernels[3] == (3, 3, 3)  # 0.7 mm have become 5.6
    assert plan_levels((4, 4, 4), (1, 1, 1)).strides == ((2, 2, 2),)


def test_what_is_chosen_grows_with_the_machine():
    chosen = [configure(make(*CHEST, "ct"), means=means) for means in (LAPTOP, V100, H100)]
    volumes = [np.prod(each.topology.patch) for each in chosen]
    assert volumes == sorted(volumes)
    assert [each.features[0] for each in chosen] == [16, 32, 32]
    for each, means in zip(chosen, (LAPTOP, V100, H100), strict=True):
        assert each.memory_bytes <= 0.8 * means.memory_bytes
        assert each.batch_size >= 2
        assert all(
            p % m == 0 for p, m in zip(each.topology.patch, each.topology.multiple, strict=True)
        )
        model = UNet3D(num_classes=2, **each.model_args)
        assert model.config["features"] == list(each.features)
    assert chosen[0].step_flops <= 120e9
    assert chosen[0].steps[0] == "window_-901_201"


def test_small_volumes_are_taken_whole_and_a_batch_is_a_twentieth_of_the_data():
    chosen = configure(make(*HIPPOCAMPUS), means=H100)
    assert chosen.topology.patch == (40, 56, 40)
    assert chosen.batch_size == 3  # 5 % of 100 volumes of 36 x 50 x 35
    assert chosen.transform.startswith("spacing_1x1x1+zscore+patch_40x56x40+flip_dhw+rotate_15")


def test_thick_slices_keep_the_tenth_percentile_and_are_hardly_turned():
    chosen = configure(make(*PROSTATE), means=H100)
    assert chosen.spacing_mm[0] == pytest.approx(4.4)
    assert chosen.spacing_mm[1:] == (0.7, 0.7)
    assert "rotate_5" in chosen.steps
    assert "10th percentile" in chosen.reasons["spacing"]
    assert chosen.topology.strides[0] == (1, 2, 2)


@pytest.mark.parametrize(
    "name",
    [
        "left_lung",
        "Right lung",
        "Left-Hippocampus",
        "LeftLung",
        "kidneyRIGHT",
        "LEFTKidney",
        "vein.left2",
        "lung_L",
        "kidney_R",
        "L_Lung",
        "LLung",
        "lt_lung",
        "rt kidney",
        "hip-r",
        "r",
    ],
)
def test_classes_named_by_a_side_are_not_mirrored_along_it(name):
    names = ("background", name, "anterior wall")
    assert "flip_d" in configure(make(*HIPPOCAMPUS, names=names), means=LAPTOP).steps
    names = ("background", "cleft", "Bright_nodule", "vertebra_L5", "Rib", "altered", "MRI")
    assert "flip_dhw" in configure(make(*HIPPOCAMPUS, names=names), means=LAPTOP).steps


def test_every_choice_can_be_made_by_hand():
    chosen = configure(
        make(*CHEST), means=LAPTOP, spacing_mm=(2, 2, 2), patch=(30, 30, 30), batch_size=1,
        features=(8, 16), modality="ct",
    )  # fmt: skip
    assert chosen.spacing_mm == (2, 2, 2)
    assert chosen.topology.patch == (30, 30, 30)
    assert (chosen.batch_size, chosen.features) == (1, (8, 16))
    assert chosen.steps[0].startswith("window")
    assert chosen.describe().count("as given") == 4


def test_wrong_arguments_are_told_at_once():
    with pytest.raises(ConfigError, match=r"spacing_mm=\[1, 0, 1\].*batch_size=0.*modality='pet'"):
        configure(make(*CHEST), means=LAPTOP, spacing_mm=(1, 0, 1), batch_size=0, modality="pet")
    with pytest.raises(ConfigError, match="smallest patch"):
        configure(make(*CHEST), means=Means("cpu", 2**20, None, has_bf16=False))
    with pytest.raises(ConfigError, match="write 8GiB"):
        Means.here(memory="lots")


def test_cubes_of_nodules_are_configured(real_data, tmp_path):
    with np.load(real_data / "lidc_nodules" / "lidc_nodules_u8.npz") as cubes:
        for name, key in (("images", "image"), ("labels", "mask")):
            (tmp_path / name).mkdir()
            for number, cube in enumerate(cubes[key][:6]):
                np.save(tmp_path / name / f"{number}.npy", cube)
    chosen = configure(tmp_path, means=LAPTOP)
    assert chosen.topology.patch == (56, 56, 56)
    data = VolumeDataset(tmp_path, chosen.transform, cache="off")
    assert data[0]["inputs"].shape == (1, 56, 56, 56)


def test_the_hippocampus_gets_the_patch_of_nnunet(real_data):
    chosen = configure(take_fingerprint(real_data / "hippocampus", max_volumes=20), means=LAPTOP)
    assert chosen.topology.patch == (40, 56, 40)
    assert chosen.features == (16, 32, 64, 128)
