import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms import v2

from deepseek.datasets import DataLoader, ImageDataset
from deepseek.datasets.classes import check_same_classes, check_same_data
from deepseek.errors import ConfigError, DataError

from .conftest import draw

AUGMENT = "random_resized_crop_24+hflip+color_jitter+randaugment+random_erasing"


def test_sample_and_spec(class_folders):
    data = ImageDataset(class_folders, transform="resize_24")
    assert len(data) == 18
    assert data.class_names == ("cat", "dog", "eel")
    assert data.targets.dtype == np.int64
    assert data.spec.class_counts == (6, 6, 6)
    sample = data[17]
    assert sample["inputs"].shape == data.spec.fields["inputs"].shape == (3, 24, 24)
    assert sample["inputs"].dtype == torch.uint8
    assert sample["targets"].item() == 2
    assert data.describe(17).endswith("eel/nested/5.png")
    assert data.image(17).size == (95, 56)
    assert data.spec.transform == "resize_24"


def test_one_channel(class_folders):
    data = ImageDataset(class_folders, "resize_24", channels=1)
    assert data[0]["inputs"].shape == (1, 24, 24)
    assert data.image(0).mode == "L"


@pytest.mark.parametrize(
    "transform", [AUGMENT, "resize_24", "hflip+resize_24", "resize_30+random_crop_24"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_cache_changes_no_result(class_folders, transform, channels):
    kept = ImageDataset(class_folders, transform, channels=channels)
    fresh = ImageDataset(class_folders, transform, channels=channels, cache="off")
    for epoch in (0, 1, 1):
        for i in range(len(kept)):
            assert torch.equal(kept.get(i, epoch)["inputs"], fresh.get(i, epoch)["inputs"])


def test_randomness_is_of_seed_epoch_and_index(class_folders):
    data = ImageDataset(class_folders, AUGMENT, seed=1)
    first = [data.get(i, 3)["inputs"] for i in range(18)]
    batch, bad = data.get_batch(list(reversed(range(18))), 3)
    assert bad == []
    assert torch.equal(batch["inputs"].flip(0), torch.stack(first))
    assert batch["index"].tolist() == list(reversed(range(18)))
    assert not torch.equal(data.get(0, 4)["inputs"], first[0])
    other = ImageDataset(class_folders, AUGMENT, seed=2)
    assert not torch.equal(other.get(0, 3)["inputs"], first[0])


def test_batches_are_channels_last(class_folders):
    batch, _ = ImageDataset(class_folders, "resize_24").get_batch([0, 1], 0)
    assert batch["inputs"].is_contiguous(memory_format=torch.channels_last)


def test_torchvision_transform_is_reproducible_and_leaves_no_trace(class_folders):
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(24),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    data = ImageDataset(class_folders, transform)
    state = torch.get_rng_state()
    first = data.get(5, 2)["inputs"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.get(5, 2)["inputs"], first)
    assert not torch.equal(data.get(5, 3)["inputs"], first)
    assert first.dtype == torch.float32
    assert type(first) is torch.Tensor
    assert data.spec.normalization is None
    assert data.spec.transform is None
    assert data.evaluation_transform is transform


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image.resize((8, 6)),
        lambda image: np.asarray(image.resize((8, 6))),
        lambda image: torch.zeros(3, 6, 8, dtype=torch.uint8) + random.randrange(9),
    ],
)
def test_any_callable(class_folders, transform):
    data = ImageDataset(class_folders, transform)
    assert data[0]["inputs"].shape == (3, 6, 8)
    assert torch.equal(data[3]["inputs"], data[3]["inputs"])
    assert data.spec.normalization is not None


def test_a_callable_must_return_pixels(class_folders):
    with pytest.raises(DataError, match="returned a str"):
        ImageDataset(class_folders, lambda image: "no")


def test_split_is_stratified_and_disjoint():
    data = ImageDataset("digits", "random_crop_8_pad_1", channels=1)
    train, val = data.split(0.25)
    assert len(train) + len(val) == 1797
    assert not set(train._rows) & set(val._rows)
    for whole, part in zip(data.spec.class_counts, val.spec.class_counts, strict=True):
        assert abs(part - whole / 4) <= 0.5
    assert val.transform == "center_crop_8"
    assert train.transform == "random_crop_8_pad_1"
    again = data.split(0.25)[1]
    assert np.array_equal(val._rows, again._rows)
    assert not np.array_equal(val._rows, data.split(0.25, seed=9)[1]._rows)
    i = 7
    assert np.array_equal(np.asarray(val.image(i)), np.asarray(data.image(int(val._rows[i]))))


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_split_share_is_checked(share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        ImageDataset("digits", "", channels=1).split(share)


def test_with_transform_is_a_view(class_folders):
    data = ImageDataset(class_folders, AUGMENT)
    view = data.with_transform("resize_16")
    assert view[0]["inputs"].shape == (3, 16, 16)
    assert view.spec.fields["inputs"].shape == (3, 16, 16)
    assert data[0]["inputs"].shape == (3, 24, 24)


def test_pickles_for_spawned_workers(class_folders):
    data = ImageDataset(class_folders, AUGMENT)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.get(4, 2)["inputs"], data.get(4, 2)["inputs"])


def test_pictures_of_different_size_do_not_stack(class_folders):
    data = ImageDataset(class_folders, "hflip")
    with pytest.raises(DataError, match="differ in size") as caught:
        data.get_batch([0, 1], 0)
    assert "resize_224" in caught.value.fix


def test_negative_and_far_indices(class_folders):
    data = ImageDataset(class_folders, "resize_24")
    assert torch.equal(data[-1]["inputs"], data[17]["inputs"])
    with pytest.raises(IndexError, match="index=18"):
        data[18]


def damage(class_folders, count=1):
    for i in range(count):
        (class_folders / "dog" / f"{2 * i}.jpg").write_bytes(b"\xff\xd8\xff damaged")


def test_bad_sample_is_an_error_with_its_path(class_folders):
    damage(class_folders)
    data = ImageDataset(class_folders, "resize_24")
    with pytest.raises(DataError, match=r"dog/0\.jpg: the picture cannot be read"):
        data[6]


def test_bad_sample_can_be_skipped(class_folders):
    damage(class_folders)
    data = ImageDataset(class_folders, "resize_24", on_bad_sample="skip")
    assert data[6] is None
    batch, bad = data.get_batch([5, 6, 7], 0)
    assert batch["index"].tolist() == [5, 7]
    assert batch["targets"].tolist() == [0, 1]
    assert batch["inputs"].shape == (2, 3, 24, 24)
    assert [index for index, _ in bad] == [6]
    assert data.get_batch([6], 0)[0] == {}


def test_a_file_that_vanished_is_bad(class_folders):
    data = ImageDataset(class_folders, "resize_24", on_bad_sample="skip", cache="off")
    (class_folders / "dog" / "0.jpg").unlink()
    assert data[6] is None


def test_max_pixels_is_checked_first(class_folders):
    with pytest.raises(DataError, match="more than max_pixels=100"):
        ImageDataset(class_folders, max_pixels=100)


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 4},
        {"on_bad_sample": "ignore"},
        {"max_bad_share": 2},
        {"max_pixels": 0},
        {"cache": "disk"},
        {"class_names": ["cat", "cat"]},
        {"class_names": "cat"},
        {"transform": 224},
    ],
)
def test_arguments_are_checked(class_folders, arguments):
    name = next(iter(arguments))
    with pytest.raises(ConfigError, match=name):
        ImageDataset(class_folders, **arguments)


def test_one_class_is_an_error_or_a_choice(tmp_path):
    (tmp_path / "cat").mkdir()
    draw(0).save(tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match=r"classes \['cat'\]"):
        ImageDataset(tmp_path)
    assert len(ImageDataset(tmp_path, allow_one_class=True)) == 1


def test_same_classes(class_folders, tmp_path):
    train = ImageDataset(class_folders, "resize_24")
    for name in ("cat", "dog", "fox"):
        (tmp_path / "val" / name).mkdir(parents=True)
        draw(1).save(tmp_path / "val" / name / "0.png")
    val = ImageDataset(tmp_path / "val", "resize_24")
    check_same_classes(train, train)
    with pytest.raises(DataError, match="only in training: eel; only in validation: fox"):
        check_same_classes(train, val)
    turned = ImageDataset(class_folders, "resize_24", class_names=["eel", "dog", "cat"])
    assert turned.describe(0).endswith("eel/nested/0.jpg")
    with pytest.raises(DataError, match="order their classes differently"):
        check_same_classes(train, turned)


def test_pictures_of_loaders_have_the_same_classes(class_folders, tmp_path):
    train = ImageDataset(class_folders, "resize_24")
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        draw(1).save(tmp_path / "val" / name / "0.png")
    val = ImageDataset(tmp_path / "val", "resize_24")
    check_same_data(DataLoader(train), DataLoader(train))
    with pytest.raises(DataError, match="only in training: eel"):
        check_same_data(DataLoader(train), DataLoader(val))
    # a subset has no names
    check_same_data(DataLoader(train), DataLoader(Subset(val, [0, 1])))


def test_exif_and_reduced_decoding_together(tmp_path):
    picture = draw(3, 900, 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    picture.save(tmp_path / "a" / "0.jpg", quality=95, exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b" / "0.png")
    data = ImageDataset(tmp_path, "resize_60x40")
    error = data[0]["inputs"].int() - data[1]["inputs"].int()
    assert error.abs().float().mean() < 3
