"""Predictions to a file: what is in it, what a damaged picture is, and what a kill leaves."""

import json
import os
from itertools import islice

import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv
from tests.unit.deploy.service.conftest import make_engine, make_text_engine, png

from deepseek.datasets import ImageDataset, JointDataset
from deepseek.deploy.scoring import Scoring, find_items, predict_to_file, score
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine, MultiHead

SCORING = Scoring(top_k=2, batch_size=4)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for seed in range(11):
        (folder / ("more" if seed > 8 else "") / f"{seed:02}.png").write_bytes(png(seed=seed))
    (folder / "05.png").write_bytes(png()[:40])
    return folder


def write(pictures, output, scoring=SCORING, **options):
    engine = make_engine()
    return predict_to_file(engine, find_items(engine, [pictures]), output, scoring, **options)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_file(pictures, tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    done = write(pictures, whole)
    assert (done.num_rows, done.num_errors) == (11, 1)
    part = tmp_path / f"again{suffix}.part"

    class Killed(Exception):
        pass

    def kill(count):
        if count >= 8:
            raise Killed

    with pytest.raises(Killed):
        write(pictures, tmp_path / f"again{suffix}", on_rows=kill)
    content = part.read_bytes()
    for length in (len(content), len(content) - 7, content.index(b"\n") + 1):
        part.write_bytes(content[:length])
        seen = []
        done = write(pictures, tmp_path / f"again{suffix}", on_rows=seen.append)
        assert (done.num_rows, done.num_errors) == (11, 1)
        assert seen[0] in (0, 4, 8)
        assert (tmp_path / f"again{suffix}").read_bytes() == whole.read_bytes()
        assert not part.exists()
        (tmp_path / f"again{suffix}").unlink()


def test_rows_are_what_the_engine_predicts_and_an_error_is_one(pictures, tmp_path):
    write(pictures, tmp_path / "a.parquet")
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    names = [row["file"].rpartition("pictures/")[2] for row in rows]
    assert names == [f"{n:02}.png" for n in range(9)] + ["more/09.png", "more/10.png"]
    assert [row["label"] is None for row in rows] == [n == 5 for n in range(11)]
    assert "05.png" in rows[5]["error"]
    found = make_engine().predict(rows[0]["file"], top_k=2)
    assert [rows[0]["label"], rows[0]["label_2"]] == [label for label, _ in found.top]
    assert rows[0]["prob"] == pytest.approx(found.prob, abs=1e-6)


def test_strict_ends_at_what_cannot_be_read(pictures, tmp_path):
    with pytest.raises(DataError, match=r"05\.png"):
        write(pictures, tmp_path / "a.csv", Scoring(is_strict=True))


def test_another_run_is_not_gone_on_with(pictures, tmp_path):
    (tmp_path / "a.csv.part").write_text("{}\n")
    with pytest.raises(ConfigError, match="was begun by another run"):
        write(pictures, tmp_path / "a.csv")
    (tmp_path / "b.csv").touch()
    with pytest.raises(ConfigError, match="is there already"):
        write(pictures, tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="has no suffix of a table"):
        write(pictures, tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "!.png").write_bytes(png()), r"'.*00\.png' as sample 0, now .*!"),
        (lambda folder: (folder / "03.png").unlink(), r"03\.png' as sample 3, now it is '.*04"),
        (lambda folder: [each.unlink() for each in folder.rglob("0[4-9].png")], "now .*10.png"),
    ],
)  # fmt: skip
def test_a_run_is_not_gone_on_with_where_its_samples_have_changed(
    pictures, tmp_path, change, message
):
    def kill(count):
        if count >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(pictures, tmp_path / "a.csv", on_rows=kill)
    content = (tmp_path / "a.csv.part").read_bytes()
    change(pictures)
    with pytest.raises(ConfigError, match=message) as refused:
        write(pictures, tmp_path / "a.csv")
    assert "a.csv.part to begin anew" in refused.value.fix
    assert (tmp_path / "a.csv.part").read_bytes() == content


def test_what_comes_behind_the_samples_that_are_done_is_predicted_too(pictures, tmp_path):
    def kill(count):
        if count >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(pictures, tmp_path / "a.csv", on_rows=kill)
    (pictures / "08a.png").write_bytes(png(seed=20))
    write(pictures, tmp_path / "a.csv")
    write(pictures, tmp_path / "whole.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def make_joint_engine():
    torch.manual_seed(0)
    digits = ImageDataset("digits", transform="resize_8", channels=1)
    data = JointDataset(digits, {"loss": torch.randn(len(digits))}, own="prob")
    engine = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8, "channels": 1}))
    engine.bind(data.spec)
    return engine.eval()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_of_several_tasks_a_first_picture_that_cannot_be_read_costs_no_other_row(tmp_path, suffix):
    engine, output = make_joint_engine(), tmp_path / f"out{suffix}"
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(paths):
        path.write_bytes(png(seed=seed)[: 1000 if seed else 40])
    done = predict_to_file(engine, map(str, paths), output)
    assert (done.num_rows, done.num_errors) == (3, 1)
    read = pq.read_table if suffix == ".parquet" else csv.read_csv
    bad, *good = read(output).to_pylist()
    assert list(bad) == ["file", "prob_label", "prob_prob", "loss_value", "error"]
    assert "a.png" in bad["error"]
    assert bad["prob_prob"] is None
    for row in good:
        found = engine.predict(row["file"])
        assert str(row["prob_label"]) == found["prob"].label  # not a number by its task's name
        assert row["loss_value"] == pytest.approx(found["loss"], abs=1e-6)
        assert not row["error"]


def test_where_nothing_can_be_read_the_reasons_are_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    engine = make_joint_engine()
    done = predict_to_file(engine, [str(tmp_path / "a.png")], tmp_path / "out.parquet")
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (done.num_errors, list(row)) == (1, ["file", "error"])


def test_tables_of_paths_are_relative_to_the_table(pictures, tmp_path):
    (tmp_path / "list.csv").write_text("path,x\npictures/01.png,1\npictures/00.png,2\n")
    (tmp_path / "list.jsonl").write_text('{"path": "pictures/02.png"}\n')
    items = find_items(make_engine(), [tmp_path / "list.csv", tmp_path / "list.jsonl"])
    assert [item.rpartition("/")[2] for item in items] == ["01.png", "00.png", "02.png"]


def test_texts_are_written_too(tmp_path):
    engine = make_text_engine(tmp_path)
    (tmp_path / "a.txt").write_text("a good film\na bad film\n")
    items = find_items(engine, [tmp_path / "a.txt"], ["good"])
    assert predict_to_file(engine, items, tmp_path / "out.jsonl").num_rows == 3
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["good", "a good film", "a bad film"]
    assert all(0.5 <= row["top"][0]["prob"] <= 1 for row in rows)


def test_no_more_is_read_than_two_batches_ahead(pictures):
    seen = []

    def items():
        for path in find_items(make_engine(), [pictures]):
            seen.append(path)
            yield path

    next(islice(score(make_engine(), items(), Scoring(batch_size=2)), 1))
    assert len(seen) == 4


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_name_that_is_no_utf8_is_written(tmp_path, suffix):
    folder = tmp_path / "pictures"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"M\xfcller.png")).write_bytes(png())
    except OSError:
        pytest.skip("this file system has no such names")
    assert write(folder, tmp_path / f"found{suffix}").num_rows == 1
    assert "ller.png" in str((tmp_path / f"found{suffix}").read_bytes())
