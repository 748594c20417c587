import os
import random
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from deepseek.datasets import DataLoader, ImageDataset, JointDataset, TextDataset
from deepseek.datasets.loader import choose_num_workers
from deepseek.datasets.sampler import epoch_order
from deepseek.errors import CheckpointError, ConfigError, DataError

AUGMENT = "random_crop_8_pad_1+hflip"


def loader(**changes) -> DataLoader:
    data = ImageDataset("digits", AUGMENT, channels=1, seed=3)
    arguments = {"batch_size": 200, "num_workers": 0, "seed": 5}
    return DataLoader(data, **{**arguments, **changes})


def same(left: list[dict], right: list[dict]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_has_every_sample_once():
    data = loader()
    batches = list(data)
    assert len(batches) == len(data) == 9
    assert data.num_samples == 1797
    index = torch.cat([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == list(range(1797))
    targets = torch.cat([batch["targets"] for batch in batches])
    assert np.array_equal(targets, data.dataset.targets[index.numpy()])
    assert data.state_dict() == {"epoch": 1, "position": 0}


def test_no_shuffle_and_drop_last():
    data = loader(shuffle=False, drop_last=True)
    assert [len(batch["index"]) for batch in data] == [200] * 8
    assert data.num_samples == 1600
    assert next(iter(data))["index"].tolist() == list(range(200))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    alone, helped = loader(), loader(num_workers=num_workers)
    for _ in range(2):
        assert same(list(alone), list(helped))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_exchanged_in_the_midst_of_an_epoch_are_those_of_its_rest(num_workers):
    before = TensorDataset(torch.arange(20.0), torch.zeros(20))
    after = TensorDataset(100 + torch.arange(16.0), torch.zeros(16))
    data = DataLoader(before, batch_size=4, num_workers=num_workers, seed=5)
    batches = iter(data)
    first = [next(batches), next(batches)]
    assert all((batch["inputs"] < 20).all() for batch in first)
    data.exchange(after)
    rest = torch.cat([batch["inputs"] for batch in batches])
    assert rest.tolist() == (100 + epoch_order(16, 5, 0, shuffle=True)[8:]).tolist()
    assert data.state_dict() == {"epoch": 1, "position": 0}
    assert len(list(data)) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [(0, 1), (0, 9), (1, 4)])
def test_resume_is_exact_anywhere(num_workers, stop):
    whole = [batch for data in [loader()] for _ in range(3) for batch in data]
    data, taken = loader(num_workers=num_workers), []
    for _ in range(stop[0]):
        taken += list(data)
    for batch in data:
        taken.append(batch)
        if data.position == min(200 * stop[1], 1797):
            break
    state = data.state_dict()
    assert state == {"epoch": stop[0], "position": min(200 * stop[1], 1797)}
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(state)
    while resumed.epoch < 3:
        taken += list(resumed)
    assert same(taken, whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_off_loop_goes_on(num_workers):
    data, taken = loader(num_workers=num_workers), []
    for _ in range(3):
        for batch in data:
            taken.append(batch)
            if len(taken) % 4 == 0:
                break
    assert same(taken, list(loader()) if data.epoch else list(loader())[: len(taken)])


def test_iteration_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    list(loader(num_workers=1))
    list(loader())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_a_recipe_learns_its_data(class_folders):
    recipe = DataLoader(input_format="image", batch_size=4, transform="resize_16", num_workers=0)
    assert not recipe.is_bound
    for use in (
        lambda: len(recipe),
        lambda: recipe.spec,
        lambda: recipe.dataset,
        lambda: list(recipe),
    ):
        with pytest.raises(ConfigError, match="recipe: it has no data yet"):
            use()
    assert recipe.load(class_folders, channels=1) is recipe
    assert recipe.is_bound
    assert recipe.spec.fields["inputs"].shape == (1, 16, 16)
    assert next(iter(recipe))["inputs"].shape == (4, 1, 16, 16)
    recipe.bind(ImageDataset(class_folders, "resize_24"))
    assert recipe.state_dict() == {"epoch": 0, "position": 0}
    assert recipe.spec.fields["inputs"].shape == (3, 16, 16)  # the recipe's transform


def test_the_loaders_transform_is_not_ignored():
    data = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match="would be ignored"):
        DataLoader(data, transform="resize_8")


class Noisy(Dataset):
    """Draws from all three global generators, as many data sets do."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        value = torch.rand(2) + np.random.rand() + random.random()
        return value, index % 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_foreign_randomness_is_reproducible(num_workers):
    first = [
        b for data in [DataLoader(Noisy(), batch_size=3, num_workers=0)] for _ in "ab" for b in data
    ]
    data = DataLoader(Noisy(), batch_size=3, num_workers=num_workers)
    assert same(first, [batch for _ in "ab" for batch in data])
    by_epoch = [
        torch.cat([b["inputs"] for b in part]).sort(0).values for part in (first[:4], first[4:])
    ]
    assert not torch.equal(*by_epoch)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pictures_in_a_concat_dataset_are_augmented_anew_each_epoch(num_workers):
    digits = ImageDataset("digits", "random_crop_8_pad_4", channels=1)
    both = ConcatDataset([Subset(digits, range(6)), Subset(digits, range(6, 12))])
    loader = DataLoader(both, batch_size=6, shuffle=False, num_workers=num_workers)
    epochs = [torch.cat([batch["inputs"] for batch in loader]) for _ in range(2)]
    loader.close()
    for epoch, pictures in enumerate(epochs):
        assert torch.equal(pictures, digits.get_batch(range(12), epoch)[0]["inputs"])
    assert not torch.equal(*epochs)
    assert torch.equal(both[3]["inputs"], epochs[0][3])  # outside a loader it is the first


def test_hidden_tokens_in_a_subset_are_others_each_epoch(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and saw a dog there\n" * 4)
    texts = TextDataset(
        tmp_path / "a.txt", "masked_language_modelling", tokenizer="wordpiece",
        sequence_length=16, padding="sequence_length", document_per="line", cache="off",
    )  # fmt: skip
    loader = DataLoader(Subset(texts, range(4)), batch_size=4, shuffle=False, num_workers=0)
    first, second = (torch.cat([batch["targets"] for batch in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(second, texts.get_batch(range(4), 1)[0]["targets"])


def test_foreign_data_is_not_read_more_often_than_needed():
    data = TensorDataset(torch.arange(20.0).view(10, 2), torch.arange(10) % 3)
    batches = list(DataLoader(data, batch_size=4, shuffle=False))
    assert torch.equal(torch.cat([batch["inputs"] for batch in batches]), data.tensors[0])
    assert batches[2]["index"].tolist() == [8, 9]
    assert batches[0]["targets"].tolist() == [0, 1, 2, 0]


def damage(folder, count):
    for i in range(count):
        (folder / "dog" / f"{2 * i}.jpg").write_bytes(b"\xff\xd8\xff damaged")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_samples_are_dropped_and_counted(class_folders, num_workers):
    damage(class_folders, 2)
    data = ImageDataset(class_folders, "resize_16", on_bad_sample="skip", max_bad_share=0.2)
    skipping = DataLoader(data, batch_size=4, num_workers=num_workers)
    for _ in range(2):
        assert sum(len(batch["index"]) for batch in skipping) == 16
    assert skipping.num_bad == 2
    assert skipping.state_dict() == {"epoch": 2, "position": 0}


def test_a_batch_without_a_good_sample_is_left_out(class_folders):
    damage(class_folders, 1)
    data = ImageDataset(class_folders, "resize_16", on_bad_sample="skip", max_bad_share=0.2)
    assert len(list(DataLoader(data, batch_size=1, num_workers=0))) == 17


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_samples(class_folders, num_workers):
    damage(class_folders, 2)
    data = ImageDataset(class_folders, "resize_16", on_bad_sample="skip", max_bad_share=0.1)
    with pytest.raises(DataError, match=r"2 of 18 pictures cannot be read, 11\.11%") as caught:
        list(DataLoader(data, batch_size=6, num_workers=num_workers))
    assert "dog/0.jpg" in str(caught.value)
    assert "dog/2.jpg" in str(caught.value)


def test_a_picture_that_is_skipped_is_skipped_with_labels_of_several_tasks(class_folders):
    damage(class_folders, 1)
    data = ImageDataset(class_folders, "resize_16", on_bad_sample="skip", max_bad_share=0.1)
    joint = JointDataset(data, {"size": np.arange(18) / 2}, own="kind")
    for view in (joint, joint.evaluation_view()):
        for batch_size, count in ((1, 17), (6, 3)):  # the bad one alone in its batch, and not
            skipping = DataLoader(view, batch_size=batch_size, shuffle=False, num_workers=0)
            batches = list(skipping)
            index = torch.cat([batch["index"] for batch in batches])
            assert len(batches) == count
            assert len(index) == 17
            assert torch.equal(torch.cat([b["targets.size"] for b in batches]), index / 2)
            assert skipping.num_bad == 1
    damage(class_folders, 2)
    data = ImageDataset(class_folders, "resize_16", on_bad_sample="skip", max_bad_share=0.1)
    joint = JointDataset(data, {"size": np.arange(18) / 2}, own="kind")
    with pytest.raises(DataError, match=r"more than max_bad_share=10\.00%"):
        list(DataLoader(joint, batch_size=6, num_workers=0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_arrive_whole(class_folders, num_workers):
    damage(class_folders, 1)
    with pytest.raises(DataError, match=r"^\S*dog/0\.jpg: the picture cannot be read") as caught:
        list(DataLoader(ImageDataset(class_folders, "resize_16"), num_workers=num_workers))
    assert "on_bad_sample" in caught.value.fix


class Deadly(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1), 0


@pytest.mark.filterwarnings("ignore:a worker process of the loader died")
def test_a_dead_worker_is_explained():
    with pytest.raises(DataError, match="a worker process of the loader died") as caught:
        list(DataLoader(Deadly(), batch_size=2, num_workers=1))
    assert "memory" in caught.value.fix
    assert "/dev/shm" in caught.value.fix


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"epoch": 1},
        {"epoch": -1, "position": 0},
        {"epoch": 0, "position": 1.5},
        {"epoch": 0, "position": 1798},
        {"epoch": 0, "position": 0, "surplus": 1},
    ],
)
def test_states_are_checked(state):
    with pytest.raises(CheckpointError):
        loader().load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_workers": "many"}, "num_workers='many'"),
        ({"prefetch_batches": 0}, "prefetch_batches=0"),
        ({"seed": -1}, "seed=-1"),
        ({"input_format": "imgae"}, "imgae"),
        ({"batch_size": 0, "seed": -1}, r"batch_size=0.*seed=-1"),
    ],
)
def test_arguments_are_checked(arguments, match):
    with pytest.raises(ConfigError, match=match):
        DataLoader(**arguments)


def test_drop_last_must_leave_a_batch():
    with pytest.raises(DataError, match="1797 samples, batch_size=2000"):
        loader(batch_size=2000, drop_last=True)


def test_auto_workers(class_folders):
    assert choose_num_workers("auto", ImageDataset("digits", "none", channels=1), 50) == 0
    large = ImageDataset(class_folders, "resize_224")
    assert 1 <= choose_num_workers("auto", large, 50) <= 8
    assert choose_num_workers("auto", large, 1) == 0
    assert choose_num_workers(3, large, 50) == 3
