import json

import numpy as np

from deepseek.deploy.report.downsample import downsample
from deepseek.deploy.report.records import read_records


def test_half_a_line_is_counted_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"train","step":1,"loss":2}\n{"kind":"tr')
    records, bad_lines = read_records(path)
    assert records["train"].points("loss")[1].tolist() == [2.0]
    assert bad_lines == [2]


def test_steps_repeated_after_a_resume_are_drawn_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [1, 2, 3, 4, 3, 4, 5]
    rows = [{"kind": "train", "step": step, "loss": at} for at, step in enumerate(steps)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = read_records(path)[0]["train"]
    assert train.points("loss")[0].tolist() == [1, 2, 3, 4, 5]
    assert train.points("loss")[1].tolist() == [0, 1, 4, 5, 6]
    assert train.num_superseded == 2


def test_what_is_no_number_is_a_gap(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind":"a","step":1,"x":null,"y":NaN}\n{"kind":"a","step":2,"x":"b","late":3}\n'
        '{"kind":"a","step":3,"x":[1],"y":7}\n[1]\n\n'
    )
    records, bad_lines = read_records(path)
    assert bad_lines == [4]
    assert len(records["a"].points("x")[1]) == 0
    assert records["a"].points("y")[1].tolist() == [7.0]
    assert records["a"].points("late")[0].tolist() == [2.0]


def test_downsampling_keeps_the_extremes_and_the_last_point():
    x = np.arange(100_000.0)
    y = np.sin(x / 1e4)
    y[54_321] = 99.0
    line = downsample(x, y, 100)
    assert len(line.x) == 100
    assert line.high.max() == 99.0
    assert line.low.min() == y.min()
    assert line.last == (x[-1], y[-1])
    assert ((line.low <= line.mean) & (line.mean <= line.high)).all()
