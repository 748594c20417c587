"""Predictions to a file: what is in it, what a damaged picture is, and what a kill leaves."""

import json
from itertools import islice

import pyarrow.parquet as pq
import pytest
from tests.unit.deploy.service.conftest import make_engine, make_text_engine, png

from deepseek.deploy.scoring import Scoring, find_items, predict_to_file, score
from deepseek.errors import ConfigError, DataError

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
