import csv
import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepseek.datasets import ImageDataset
from deepseek.datasets.source import number_labels
from deepseek.errors import DataError

from .conftest import draw
from .test_picture import encode

NAMES = ["cat", "dog"]
CONTENT = [encode(draw(i, 30, 20)) for i in range(6)]
LABELS = [0, 1, 1, 0, 1, 0]


@pytest.fixture
def folder(tmp_path):
    for i, (content, label) in enumerate(zip(CONTENT, LABELS, strict=True)):
        (tmp_path / "pictures" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / NAMES[label] / f"{i}.png").write_bytes(content)
    return tmp_path


def write_index(path, rows, columns=("path", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
    return path


def paths(label_of=lambda label: NAMES[label]):
    return [(f"pictures/{NAMES[k]}/{i}.png", label_of(k)) for i, k in enumerate(LABELS)]


def write_parquet(path, rows=range(6), names=NAMES, label="label", image="image"):
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    pictures = [{"bytes": CONTENT[i], "path": f"{i}.png"} for i in rows]
    table = pa.table({image: pictures, label: [LABELS[i] for i in rows]})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def write_tar(path, rows=range(6), label=lambda k: ("cls", str(k).encode()), extra=()):
    with tarfile.open(path, "w") as archive:
        for i in rows:
            suffix, body = label(LABELS[i])
            for name, content in ((f"set/{i:04}.png", CONTENT[i]), (f"set/{i:04}.{suffix}", body)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def check(path, names=("cat", "dog"), layout=None, **options):
    data = ImageDataset(path, "resize_8", **options)
    assert data.targets.tolist() == LABELS
    assert data.class_names == names
    assert layout is None or data.layout == layout
    for i in (5, 0, 3):
        expected = np.asarray(draw(i, 30, 20))
        assert np.array_equal(np.asarray(data.image(i)), expected)
        assert str(i) in data.describe(i)
    return data


def refuse(path, *words, **options):
    with pytest.raises(DataError) as caught:
        ImageDataset(path, "resize_8", **options)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.fix


# -- class folders ---------------------------------------------------------------------------


def test_folders_follow_the_alphabet(folder):
    data = ImageDataset(folder / "pictures", "resize_8")
    assert data.layout == "class folders"
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_forced_classes_may_be_absent(folder):
    data = ImageDataset(folder / "pictures", "resize_8", class_names=["ape", "dog", "cat"])
    assert data.spec.class_counts == (0, 3, 3)
    refuse(folder / "pictures", "dog", "class_names", class_names=["ape", "cat"])


def test_folder_mistakes(folder, tmp_path):
    refuse(tmp_path / "nowhere", "does not exist")
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, "no pictures")
    (empty / "cat").mkdir()
    refuse(empty, "no pictures")
    (folder / "pictures" / "fox").mkdir()
    refuse(folder / "pictures", "fox", "no pictures in the class folders")
    (folder / "pictures" / "fox").rmdir()
    (folder / "pictures" / "loose.png").write_bytes(CONTENT[0])
    refuse(folder / "pictures", "1 pictures beside its class folders", "loose.png")


def test_split_folders_are_recognised(folder):
    os.rename(folder / "pictures", folder / "train")
    refuse(folder, "splits, not classes: train", str(folder / "train"))


def test_loose_pictures_only(tmp_path):
    (tmp_path / "0.png").write_bytes(CONTENT[0])
    refuse(tmp_path, "1 pictures without a class")


def test_a_cycle_of_links_ends(folder):
    os.symlink(folder / "pictures" / "cat", folder / "pictures" / "cat" / "again")
    assert len(ImageDataset(folder / "pictures", "resize_8")) == 6


# -- index files -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_index_file(folder, suffix):
    check(write_index(folder / f"index{suffix}", paths()), layout="index file")


def test_index_in_parquet(folder):
    names, labels = zip(*paths(), strict=True)
    pq.write_table(pa.table({"path": names, "label": labels}), folder / "index.parquet")
    check(folder / "index.parquet", layout="index file")


def test_index_columns_and_numbers(folder):
    index = write_index(folder / "index.csv", paths(str), ("file", "class"))
    options = {"path_column": "file", "label_column": "class"}
    check(index, ("0", "1"), **options)
    check(index, ("cat", "dog"), class_names=NAMES, **options)
    refuse(index, "no column 'path'", "file, class")
    refuse(index, "no column 'label'", path_column="file")


def test_numbers_are_ordered_by_value(folder):
    rows = [(path, label) for (path, _), label in zip(paths(), [10, 2, 2, 10, 2, 10], strict=True)]
    data = ImageDataset(write_index(folder / "index.csv", rows), "resize_8")
    assert data.class_names == ("2", "10")


def test_padded_numbers_are_found_by_name(folder):
    places = [path for path, _ in paths()]
    padded = write_index(folder / "train.csv", zip(places, ["01", "02", "10"] * 2, strict=True))
    train = ImageDataset(padded, "resize_8")
    assert train.class_names == ("1", "2", "10")
    val = ImageDataset(padded, "resize_8", class_names=train.class_names)
    assert val.targets.tolist() == train.targets.tolist() == [0, 1, 2, 0, 1, 2]
    plain = write_index(folder / "val.csv", zip(places, [1, 2, 10] * 2, strict=True))
    val = ImageDataset(plain, "resize_8", class_names=["01", "02", "10"])  # of class folders
    assert val.targets.tolist() == [0, 1, 2, 0, 1, 2]
    # a number that is no name is no position beside names that are numbers
    refuse(plain, "label '10' is none of the 3 classes 1, 2, 3", class_names=["1", "2", "3"])
    zero = write_index(folder / "zero.csv", zip(places, [0, 1] * 3, strict=True))
    refuse(zero, "label '0' is none of the 2 classes 1, 2", class_names=["1", "2"])


def test_labels_with_underscores_stay_apart():
    numbers, names = number_labels(["1_12", "11_2", "1_12"], None, "here")
    assert (numbers.tolist(), names) == ([1, 0, 1], ("11_2", "1_12"))
    with pytest.raises(DataError, match="label '1_0' is none of the 2 classes"):
        number_labels(["1_0"], ["a", "b"], "here")


@pytest.mark.parametrize("class_names", [None, ["a", "b"]])
def test_a_label_that_is_a_list_is_named(class_names):
    with pytest.raises(DataError, match=r"the label \['a'\] is a list, neither a name"):
        number_labels(["a", ["a"], "b"], class_names, "here")


def test_index_paths(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    up = [(f"../{path}", label) for path, label in paths()]
    refuse(write_index(outside / "index.csv", up), "leads out of the folder")
    absolute = [(str(folder / path), label) for path, label in paths()]
    check(write_index(outside / "index.csv", absolute))
    gone = [*paths(), ("pictures/gone.png", "cat")]
    refuse(write_index(folder / "index.csv", gone), "1 of 7 listed pictures", "gone.png")


def test_an_index_above_the_working_folder(folder, monkeypatch):
    write_index(folder / "index.csv", paths())
    (folder / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(folder / "work" / "deep")
    check("../../index.csv")
    check("../deep/../../index.csv")
    round_about = [(f"pictures/../{path}", label) for path, label in paths()]
    check(write_index(folder / "index.csv", round_about))


def test_index_labels(folder):
    refuse(
        write_index(folder / "index.csv", [*paths()[:3], (paths()[3][0], "")]), "line 5", "label=''"
    )
    refuse(write_index(folder / "index.csv", []), "lists no pictures")
    misspelt = [(path, "catt" if label == "cat" else label) for path, label in paths()]
    refuse(write_index(folder / "index.csv", misspelt), "'catt'", "mean 'cat'", class_names=NAMES)
    (folder / "index.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    refuse(folder / "index.csv", "not a UTF-8 table")


# -- Parquet with pictures -------------------------------------------------------------------


def test_parquet_file_folder_and_pattern(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(4))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(4, 6))
    check(tmp_path, layout="Parquet with pictures")
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(2))
    refuse(tmp_path, "several sets of *.parquet: test, train", str(tmp_path / "train"))
    check(tmp_path / "train")
    check(tmp_path / "train-*.parquet")
    assert len(ImageDataset(tmp_path / "test", "resize_8")) == 2


def test_parquet_columns(tmp_path):
    file = write_parquet(tmp_path / "data.parquet", names=None, label="fine", image="img")
    refuse(file, "no column 'label'", "img, fine")
    check(file, ("0", "1"), label_column="fine")
    check(file, label_column="fine", class_names=NAMES)
    refuse(file, "no column 'image'", image_column="image", label_column="fine")


def test_class_label_numbers_count_in_their_own_names(tmp_path):
    numbers = ["1", "10", "2"]
    first = write_parquet(tmp_path / "first.parquet", names=numbers)
    swapped = write_parquet(tmp_path / "swapped.parquet", names=["dog", "cat"])
    saved = write_saved(tmp_path / "saved", names=numbers)
    check(first, ("1", "10", "2"))
    check(saved, ("1", "10", "2"))
    data = ImageDataset(swapped, "resize_8", class_names=NAMES)
    assert data.targets.tolist() == [1 - label for label in LABELS]
    # other names for the same classes, though they look like numbers
    check(swapped, ("1", "0"), class_names=["1", "0"])
    refuse(first, "label '1' is none of the 3 classes 10, 0, 5", class_names=["10", "0", "5"])
    write_parquet(tmp_path / "few.parquet", names=["10"])
    refuse(tmp_path / "few.parquet", "label 1 is none of the 1 classes 10")


def test_shards_of_parquet_have_class_labels_of_their_own(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(4))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(4, 6), names=NAMES[::-1])
    data = ImageDataset(tmp_path, "resize_8")
    assert data.class_names == ("cat", "dog")
    assert data.targets.tolist() == [*LABELS[:4], 0, 1]


def test_parquet_mistakes(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1 no")
    refuse(tmp_path / "data.parquet", "not readable Parquet")
    table = pa.table({"image": [{"bytes": CONTENT[0], "path": ""}] * 2, "label": [0, None]})
    pq.write_table(table, tmp_path / "data.parquet")
    refuse(tmp_path / "data.parquet", "1 labels are empty")
    table = pa.table({"image": [{"bytes": CONTENT[0], "path": ""}] * 2, "label": [0.5, 1.5]})
    pq.write_table(table, tmp_path / "data.parquet")
    refuse(tmp_path / "data.parquet", "0.5", "float")


def test_parquet_reads_no_file_elsewhere(tmp_path):
    (tmp_path / "0.png").write_bytes(CONTENT[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, fits in (("0.png", True), ("../0.png", False), ("/etc/passwd", False)):
        rows = pa.array([{"bytes": None, "path": name}] * 2, kind)
        pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "data.parquet")
        if fits:
            assert len(ImageDataset(tmp_path / "data.parquet", "resize_8")) == 2
        else:
            refuse(tmp_path / "data.parquet", "not a file beside the table")


# -- tar shards ------------------------------------------------------------------------------


def test_tar_file_folder_and_patterns(tmp_path):
    check(write_tar(tmp_path / "all.tar"), ("0", "1"), layout="tar shards")
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(3):
        write_tar(shards / f"train-{i:03}.tar", range(2 * i, 2 * i + 2))
    for path in (shards, shards / "train", shards / "train-*.tar", shards / "train-{000..002}.tar"):
        check(path, class_names=NAMES)
    with pytest.raises(DataError, match=r"train-003\.tar"):
        ImageDataset(shards / "train-{000..003}.tar")


def test_tar_with_json(tmp_path):
    def label(number):
        return "json", json.dumps({"label": NAMES[number], "kind": number}).encode()

    check(write_tar(tmp_path / "all.tar", label=label))
    check(tmp_path / "all.tar", ("0", "1"), label_column="kind")
    refuse(tmp_path / "all.tar", "cannot be read", label_column="colour")


def test_tar_entries_are_never_paths(tmp_path):
    link = tarfile.TarInfo("../../evil.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    before = sorted(tmp_path.parent.rglob("*"))
    check(write_tar(tmp_path / "all.tar", extra=[link]), ("0", "1"))
    assert {path.name for path in set(tmp_path.parent.rglob("*")) - set(before)} == {"all.tar"}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_more_shards_than_may_be_open(tmp_path):
    import resource

    (tmp_path / "shards").mkdir()
    for i in range(200):
        write_tar(tmp_path / "shards" / f"train-{i:03}.tar", [i % 6])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(1024) if number not in taken][:150]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1] + 1, before[1]))
    try:
        data = ImageDataset(tmp_path / "shards", "none")
        contents = [data.image(i) for i in (*range(200), 0)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for i in (0, 7, 199, 200):
        assert np.array_equal(np.asarray(contents[i]), np.asarray(draw(i % 200 % 6, 30, 20)))


def test_tar_mistakes(tmp_path):
    shard = write_tar(tmp_path / "all.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700])
    refuse(shard, "all.tar")
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    refuse(tmp_path / "gz.tar", "not a readable uncompressed tar")
    refuse(write_tar(tmp_path / "un.tar", label=lambda k: ("txt", b"x")), "6 of 6 pictures have no")
    refuse(write_tar(tmp_path / "no.tar", rows=[]), "hold no pictures")
    refuse(write_tar(tmp_path / "em.tar", label=lambda k: ("cls", b"")), "is empty")


def test_tar_entry_beyond_the_end(tmp_path):
    info = tarfile.TarInfo("z.png")
    shard = write_tar(tmp_path / "all.tar")
    content = shard.read_bytes().rstrip(b"\0")
    info.size = 2**40
    shard.write_bytes(content + b"\0" * (-len(content) % 512) + info.tobuf())
    refuse(shard, "beyond the end")


# -- a saved data set ------------------------------------------------------------------------


def write_saved(folder, rows=range(6), names=NAMES):
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": CONTENT[i], "path": f"{i}.png"} for i in rows], kind)
    table = pa.table({"image": image, "label": [LABELS[i] for i in rows]})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return folder


def test_saved_data_set(tmp_path):
    check(write_saved(tmp_path / "saved"), layout="saved Hugging Face data set")


def test_saved_splits_need_a_choice(tmp_path):
    write_saved(tmp_path / "train")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    refuse(tmp_path, "several saved splits: train")
    check(tmp_path / "train")


def test_saved_data_set_names_only_its_own_files(tmp_path):
    saved = write_saved(tmp_path / "saved")
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    refuse(saved, "'../x.arrow'")
    (saved / "state.json").write_text("{}")
    refuse(saved, "not a whole saved data set")


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = {"image": [{"bytes": content, "path": None} for content in CONTENT], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    check(tmp_path / "saved")


# -- other -----------------------------------------------------------------------------------


def test_unknown_kind_of_file(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refuse(tmp_path / "notes.txt", "not a data set that is read here")
    refuse(tmp_path / "*.csv", "no file fits the pattern")


def test_digits_are_scikit_learns():
    data = ImageDataset("digits", "none", channels=1)
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    digits = datasets.load_digits()
    assert np.array_equal(data.targets, digits.target)
    batch, _ = data.get_batch(range(len(data)), 0)
    expected = torch.from_numpy(np.round(digits.images * 255 / 16))
    assert torch.equal(batch["inputs"][:, 0].double(), expected)


@pytest.mark.parametrize(("name", "count"), [("fashion_mnist", 10_000), ("cifar10", 10_000)])
def test_real_parquet(real_data, name, count):
    data = ImageDataset(real_data / name / "test", "none")
    assert len(data) == count
    assert data.spec.class_counts == (count // 10,) * 10
    assert data.class_names[0] in ("T-shirt/top", "airplane")
    refuse(real_data / name, "test, train")


def test_real_folders(real_data):
    data = ImageDataset(real_data / "hymenoptera" / "val", "resize_64")
    assert len(data) == 153
    assert data.class_names == ("ants", "bees")
    assert len(ImageDataset(real_data / "flowers5", "resize_64")) == 4317
