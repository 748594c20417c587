"""Tables as data sets: any file, exact order, kept once, faults named."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepseek.datasets import DataLoader, DataSpec, InteractionDataset
from deepseek.errors import ConfigError, DataError

NUM = 50


def columns():
    rng = np.random.default_rng(0)
    return {
        "user_id": [f"u{n}" for n in rng.integers(0, 9, NUM)],
        "price": [None if n % 10 == 0 else float(n) / 3 for n in range(NUM)],
        "time": [float(n * 7 % NUM) for n in range(NUM)],
        "click": rng.integers(0, 2, NUM).tolist(),
    }


def rows():
    table = columns()
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def write(folder, kind):
    path = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns()), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows())))
    else:
        mark = "," if kind == "csv" else "\t"
        cells = [[str("" if v is None else v) for v in row.values()] for row in rows()]
        path.write_text("\n".join(mark.join(line) for line in [list(columns()), *cells]) + "\n")
    return path


def batches(dataset, **options):
    return list(DataLoader(dataset, batch_size=8, num_workers=0, **options))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_any_file_holds_the_same_table(kind, tmp_path):
    found = InteractionDataset(write(tmp_path, kind), labels="click", cache="off")
    wanted = InteractionDataset(columns(), labels="click")
    assert found.features == wanted.features
    assert len(found) == NUM
    for one, other in zip(batches(found), batches(wanted), strict=True):
        assert equal(one, other)


def test_a_folder_of_files_is_one_table_in_the_order_of_their_names(tmp_path):
    lines = [json.dumps(row) for row in rows()]
    (tmp_path / "many").mkdir()
    for number, start in enumerate(range(0, NUM, 20)):
        part = "\n".join(lines[start : start + 20])
        (tmp_path / "many" / f"{number}.jsonl").write_text(part)
    found = InteractionDataset(tmp_path / "many", labels="click", cache="off")
    assert torch.equal(
        found[45]["dense"], InteractionDataset(columns(), labels="click")[45]["dense"]
    )


def test_features_are_kept_and_read_back(tmp_path):
    path = write(tmp_path, "csv")
    first = InteractionDataset(path, labels="click", cache=tmp_path / "kept")
    kept = sorted((tmp_path / "kept").rglob("*.npy"))
    assert [file.name for file in kept] == ["dense.npy", "labels.npy", "sparse.npy"]
    before = kept[0].stat().st_mtime_ns
    again = InteractionDataset(path, labels="click", cache=tmp_path / "kept")
    assert kept[0].stat().st_mtime_ns == before
    in_memory = InteractionDataset(path, labels="click", cache="off")
    for one, two, three in zip(batches(first), batches(again), batches(in_memory), strict=True):
        assert equal(one, two)
        assert equal(one, three)
    path.write_text(path.read_text().replace("u1", "u2"))
    changed = InteractionDataset(path, labels="click", cache=tmp_path / "kept")
    assert changed.features != first.features
    kept[0].write_bytes(b"broken")
    for place in (tmp_path / "kept").iterdir():
        (place / "store.json").write_text("{")
    assert equal(batches(InteractionDataset(path, labels="click", cache=tmp_path / "kept"))[0],
                 batches(changed)[0])  # fmt: skip


def test_a_loader_goes_on_where_it_was():
    loader = DataLoader(InteractionDataset(columns(), labels="click"), batch_size=8, seed=3)
    whole = list(loader)
    loader.load_state_dict({"epoch": 0, "position": 16})
    rest = list(loader)
    assert all(equal(one, two) for one, two in zip(whole[2:], rest, strict=True))
    with_workers = DataLoader(loader.dataset, batch_size=8, seed=3, num_workers=2)
    assert all(equal(one, two) for one, two in zip(whole, with_workers, strict=True))
    with_workers.close()


def test_ranks_share_every_batch():
    dataset = InteractionDataset(columns(), labels="click")
    whole = batches(dataset, seed=1)
    parts = []
    for rank in range(2):
        loader = DataLoader(dataset, batch_size=8, seed=1, num_workers=0)
        loader.take_share(rank, 2)
        parts.append(list(loader))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch["index"], torch.cat([share["index"] for share in shares]))


def test_rows_are_in_the_order_of_time_and_split_by_it():
    dataset = InteractionDataset(columns(), labels="click", time_column="time")
    assert (np.diff(dataset.times) >= 0).all()
    assert "time" not in dataset.features.columns
    train, val = dataset.split(0.2)
    assert train.times.max() < val.times.min()
    assert len(val) == 10
    random = InteractionDataset(columns(), labels="click").split(0.2)
    assert sorted(len(part) for part in random) == [10, 40]
    assert train.spec == val.spec


@pytest.mark.parametrize(
    "times",
    [
        ("2024-05-01 12:00:00", "2024-05-01T11:59:58.5", "2024-05-01"),
        ("2024-05-01 14:00:00+02:00", "2024-05-01T11:59:58.500000001Z", " 2024-05-01T00:00Z "),
    ],
)
def test_times_of_a_csv_are_texts(times, tmp_path):
    lines = [f"{n},{time},{n % 2}" for n, time in enumerate(times)]
    (tmp_path / "a.csv").write_text("\n".join(["a,t,click", *lines]))
    data = InteractionDataset(tmp_path / "a.csv", labels="click", time_column="t", cache="off")
    noon = 1714564800
    assert data.times.tolist() == [noon - 43200, noon - 1.5, noon]


def test_the_spec_goes_into_a_model_file_and_back():
    spec = InteractionDataset(columns(), labels="click", crosses=[("user_id", "user_id")]).spec
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.task == "binary"


def test_several_labels_say_which_are_there():
    table = {**columns(), "stars": [None if n % 5 == 0 else n % 4 for n in range(NUM)]}
    labels = {"click": {}, "stars": {"kind": "number", "missing": "mask"}}
    (batch, *_) = batches(InteractionDataset(table, labels=labels), shuffle=False)
    assert batch["targets"].dtype is torch.bool
    assert batch["targets"][:, 1].tolist() == [n % 5 != 0 for n in range(8)]
    assert batch["targets.click"].tolist() == table["click"][:8]


def test_criteo_has_its_layout(real_data, tmp_path):
    path = real_data / "criteo_kaggle_head8k" / "test.tsv"
    found = InteractionDataset(path, layout="criteo", cache=tmp_path)
    assert len(found) == 391
    assert len(found.features.sparse) == 26
    assert len(found.features.dense) == 13
    assert found.labels.mean() == pytest.approx(86 / 391)


def test_a_data_set_goes_to_another_process(tmp_path):
    dataset = InteractionDataset(write(tmp_path, "csv"), labels="click", cache=tmp_path / "kept")
    assert equal(batches(pickle.loads(pickle.dumps(dataset)))[0], batches(dataset)[0])


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.csv", "", {}, "is empty"),
        ("a.csv", "a,click\n", {}, "no rows"),
        ("a.csv", "a,click\n1,0\n2\n", {}, "Expected 2 columns, got 1"),
        ("a.csv", "a,a,click\n1,2,0\n", {}, "column 'a' twice"),
        ("a.csv", "a,,click\n1,2,0\n", {}, "no name in line 1"),
        ("a.csv", "a,b\n1,0\n", {}, "no column label, click"),
        ("a.csv", "a,b\n1,0\n", {"labels": "c"}, "'c' is missing"),
        ("a.csv", "a,click\n1,0\n2,\n", {}, "'click' is missing in row 1"),
        ("a.csv", "a,click\n1,0\n2,maybe\n", {}, "'maybe' is neither"),
        ("a.csv", "a,t,click\n1,,0\n2,3,1\n", {"time_column": "t"}, "t is missing in 1 rows"),
        ("a.csv", "a,t,click\n1,2024-05-01,0\n2,May,1\n", {"time_column": "t"}, "not all of t are"),
        ("a.csv", "a,click\n1,0\n2,1\n", {"time_column": "when"}, "'when' is missing"),
        ("a.csv", "a,click\n1,0\n2,1\n", {"features": {"dense": {"b": {}}, "label": {"click": {}}}},
         "'b' is missing"),
        ("a.csv", "a,click\nx,0\ny,1\n", {"features": {"dense": {"a": {}}, "label": {"click": {}}}},
         "a='x'.*not a number"),
        ("a.csv", "a,click\n1,0\n", {"features": {"dense": {"a": {}}}}, "has no label"),
        ("a.csv", "a,click\n1,0\n", {"layout": "odd"}, "layout='odd'"),
        ("a.csv", "a,click\n1,0\n", {"delimiter": ";;"}, "not one character"),
        ("a.jsonl", '{"a": 1, "click": 0}\n[1]\n', {}, "line 2: .* is a list"),
        ("a.jsonl", '{"a": 1\n', {}, "line 1: this is not JSON"),
        ("a.parquet", "PAR1", {}, "not readable Parquet"),
        ("a.xlsx", "zip", {}, "no kind that is known"),
    ],
)  # fmt: skip
def test_a_fault_is_named(name, content, options, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises((DataError, ConfigError), match=words):
        InteractionDataset(tmp_path / name, cache="off", **options)


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        InteractionDataset(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="differ in length"):
        InteractionDataset({"a": [1, 2], "click": [0]})
    with pytest.raises(ConfigError, match="would be ignored"):
        InteractionDataset(columns(), {"label": {"click": {}}}, labels="click")
    dataset = InteractionDataset(columns(), labels="click")
    with pytest.raises(ConfigError, match="no times"):
        _ = dataset.times
    with pytest.raises(ConfigError, match="not between"):
        dataset.split(1.5)
    with pytest.raises(DataError, match="leaves a part empty"):
        dataset.part([0]).split(0.5)
    with pytest.raises(IndexError):
        dataset[NUM]
