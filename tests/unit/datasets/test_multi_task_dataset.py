"""Data of several tasks: shares of an epoch, exact order, and labels that are missing."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from deepseek.datasets import (
    DataLoader,
    DataSpec,
    ImageDataset,
    JointDataset,
    MultiTaskDataset,
    TextDataset,
)
from deepseek.datasets.classes import check_same_data
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.datasets.multi_task_dataset import share_out
from deepseek.errors import ConfigError, DataError
from deepseek.trainer import Trainer


def table(count, offset, *, numbers=False):
    x = torch.arange(count, dtype=torch.float32)[:, None] + offset
    return TensorDataset(x, x[:, 0] / 10 if numbers else torch.arange(count) % 3)


def mixture(alpha=0.5, sizes=(40, 10)):
    big, small = table(sizes[0], 0), table(sizes[1], 1000, numbers=True)
    return MultiTaskDataset({"kind": big, "size": small}, alpha=alpha, seed=3)


def flat(batches):
    return [value for batch in batches for value in batch]


def seen(loader):
    return [batch["inputs"][:, 0].tolist() for batch in loader]


@pytest.mark.parametrize(("alpha", "counts"), [(1.0, [40, 10]), (0.5, [33, 17]), (0.0, [25, 25])])
def test_shares_follow_from_sizes_to_the_power_of_alpha(alpha, counts):
    # 50 sqrt(40) / (sqrt(40) + sqrt(10)) = 33.3
    assert list(mixture(alpha).counts.values()) == counts
    assert share_out(np.array([40, 10]), alpha).sum() == 50


def test_a_task_goes_through_its_samples_before_one_comes_again():
    loader = DataLoader(mixture(), batch_size=8, shuffle=True)
    big, small = [], []
    for _ in range(10):
        for values in seen(loader):
            big += [v for v in values if v < 1000]
            small += [v for v in values if v >= 1000]
    assert len(big) == 330
    assert len(small) == 170
    times = [big.count(v) for v in range(40)]
    assert {min(times), max(times)} <= {8, 9}
    assert all(small.count(1000 + v) == 17 for v in range(10))


def test_alpha_1_takes_every_sample_once_in_another_order_in_each_epoch():
    loader = DataLoader(mixture(1.0), batch_size=8, shuffle=True)
    first, second = (flat(seen(loader)) for _ in range(2))
    assert sorted(first) == sorted(second) == [*range(40), *range(1000, 1010)]
    assert first != second


def test_the_order_is_exact_over_resumes_workers_and_ranks():
    whole = DataLoader(mixture(), batch_size=8, shuffle=True, seed=5)
    expected = [seen(whole), seen(whole)]
    resumed = DataLoader(mixture(), batch_size=8, shuffle=True, seed=5, num_workers=0)
    resumed.load_state_dict({"epoch": 1, "position": 24})
    assert seen(resumed) == expected[1][3:]
    parts = []
    for rank in range(2):
        loader = DataLoader(
            pickle.loads(pickle.dumps(mixture())), batch_size=8, shuffle=True, seed=5
        )
        loader.take_share(rank, 2)
        parts.append(seen(loader))
    assert [a + b for a, b in zip(*parts, strict=True)] == expected[0]


def test_a_sample_has_a_label_of_its_own_task_alone():
    batch = next(iter(DataLoader(mixture(), batch_size=16, shuffle=True)))
    is_big = batch["inputs"][:, 0] < 1000
    assert torch.equal(batch["targets"], torch.stack([is_big, ~is_big], 1))
    assert torch.equal(batch["targets.kind"] >= 0, is_big)
    assert torch.equal(batch["targets.size"].isnan(), is_big)
    values = batch["inputs"][:, 0]
    assert torch.equal(batch["targets.kind"][is_big], (values[is_big] % 3).long())


def test_evaluation_takes_every_sample_once_in_order():
    loader = DataLoader(evaluation_dataset(mixture(0.0)), batch_size=7, shuffle=False)
    assert flat(seen(loader)) == [*range(40), *range(1000, 1010)]
    loader.load_state_dict({"epoch": 5, "position": 0})
    assert flat(seen(loader)) == [*range(40), *range(1000, 1010)]


def test_the_spec_says_what_each_task_is():
    spec = mixture().spec
    assert spec.task == "multi"
    assert [own.task for own in spec.tasks.values()] == ["classification", "regression"]
    assert spec.tasks["kind"].class_names == ("0", "1", "2")
    assert DataSpec.from_json(spec.to_json()) == spec


def texts(path, rows, task, tokenizer="wordpiece", **options):
    path.write_text("\n".join(rows))
    return TextDataset(path, task, tokenizer=tokenizer, sequence_length=32, cache="off", **options)


def test_texts_of_several_tasks_are_padded_to_one_width(tmp_path):
    rows = ["text,label", *(f"good film number {n},{n % 2}" for n in range(20))]
    films = texts(tmp_path / "a.csv", rows, "sequence_classification")
    words = [
        f"word{n % 5} O\nParis B-LOC\n{'tail O' + chr(10) if n % 2 else ''}" for n in range(20)
    ]
    names = texts(tmp_path / "b.conll", words, "token_classification", films.tokenizer)
    joint = MultiTaskDataset({"tone": films, "names": names})
    batch = next(iter(DataLoader(joint, batch_size=8, shuffle=True)))
    assert batch["targets.names"].shape == batch["inputs"].shape
    has = batch["targets"]
    assert (batch["targets.names"][~has[:, 1]] == -100).all()
    assert (batch["targets.names"][has[:, 1]] >= 0).sum() >= 2
    lengths, places = joint.lengths(0), joint.places(np.arange(len(joint)), 0)
    for task, source in enumerate((films, names)):  # as the lengths of each task are
        own = places.tasks == task
        assert (np.diff(source.lengths[places.samples[own]][lengths[own].argsort()]) >= 0).all()
    assert joint.spec.tokenizer == films.spec.tokenizer
    assert joint.spec.tasks["tone"].tokenizer is None


def test_inputs_of_different_kinds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"inputs \(2,\) float32 instead of \(1,\)"):
        MultiTaskDataset({"a": table(4, 0), "b": TensorDataset(torch.zeros(3, 2), torch.arange(3))})
    with pytest.raises(ConfigError, match="alpha=2 is not in"):
        MultiTaskDataset({"a": table(4, 0), "b": table(4, 0)}, alpha=2)
    with pytest.raises(ConfigError, match="there are 1 tasks"):
        MultiTaskDataset({"a": table(4, 0)})
    with pytest.raises(ConfigError, match="'b' have no labels"):
        MultiTaskDataset({"a": table(4, 0), "b": TensorDataset(torch.zeros(3, 1))})


def test_skip_is_refused_for_one_of_several_tasks():
    digits = ImageDataset("digits", transform="none", channels=1)
    skipping = ImageDataset("digits", transform="none", channels=1, on_bad_sample="skip")
    assert len(MultiTaskDataset({"a": digits, "b": digits})) == 2 * len(digits)
    with pytest.raises(ConfigError, match="task 'b' has on_bad_sample=skip"):
        MultiTaskDataset({"a": digits, "b": skipping})


def labelled(classes):
    """Return a data set that names its classes, with one sample of each."""
    data = table(len(classes), 0)
    data.classes = classes
    return data


def joined(classes):
    return JointDataset(labelled(classes), {"size": [0.5] * len(classes)}, own="kind")


def mixed(classes):
    return MultiTaskDataset({"kind": labelled(classes), "other": table(3, 0)})


@pytest.mark.parametrize("make", [labelled, joined, mixed])
def test_classes_are_compared_within_loaders_and_tasks(make, tmp_path):
    whose = "" if make is labelled else " of task 'kind'"
    train = DataLoader(make(["a", "b", "c"]), batch_size=3)

    def compare(val):
        check_same_data(train, DataLoader(make(val), batch_size=3))

    compare(["a", "b", "c"])
    compare(["a", "b"])  # the last class has no sample
    compare(["0", "1", "2"])  # what a data set without names has
    with pytest.raises(DataError, match=f"data{whose} order their classes differently: a, b, c"):
        compare(["b", "a", "c"])
    with pytest.raises(
        DataError, match=f"data{whose} differ in their classes: only in training: a"
    ):
        compare(["b", "c"])
    if make is labelled:
        with pytest.raises(DataError, match="only in training: b; only in validation: 7"):
            Trainer(torch.nn.Linear(2, 3), train, make(["a", "7", "c"]), run_dir=tmp_path)
    train = DataLoader(make([str(n) for n in range(10)]), batch_size=3)
    compare(["0", "1"])
    with pytest.raises(DataError, match="only in training: 1, 3, 4"):
        compare(["0", "2"])


def test_labels_of_further_tasks_go_with_the_samples():
    kinds = torch.tensor([0, 1, -100, 2])
    sizes = np.array([0.5, np.nan, 1.5, np.nan])
    pairs = np.array([[1.0, 2.0]] * 3 + [[np.nan, np.nan]])
    joint = JointDataset(
        table(4, 0), {"kind": kinds, "size": sizes, "pair": pairs}, own="own",
        class_names={"kind": ["a", "b", "c", "d"]},
    )  # fmt: skip
    batch = next(iter(DataLoader(joint, batch_size=4, shuffle=False)))
    assert list(joint.spec.tasks) == ["own", "kind", "size", "pair"]
    assert batch["targets"].tolist() == [
        [True, True, True, True], [True, True, False, True],
        [True, False, True, True], [True, True, False, False],
    ]  # fmt: skip
    assert batch["targets.own"].tolist() == [0, 1, 2, 0]
    assert joint.spec.tasks["kind"].class_counts == (1, 1, 1, 0)
    assert joint.spec.tasks["pair"].fields["targets"].shape == (2,)
    again = evaluation_dataset(joint)
    assert again.spec == joint.spec


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"a": [0, 1], "b": [0.5] * 4}, "2 labels for 4 samples"),
        ({"a": [0, 1, -5, 0], "b": [0.5] * 4}, "the smallest label of task 'a' is -5"),
        ({"a": ["x"] * 4, "b": [0.5] * 4}, "give class numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    with pytest.raises(DataError) as caught:
        JointDataset(table(4, 0), labels)
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match="class_names of"):
        JointDataset(table(4, 0), {"a": [0] * 4, "b": [0] * 4}, class_names={"c": ["x"]})
