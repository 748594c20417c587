"""Counters that move with every event see the past, all of it and nothing else."""

import numpy as np
import pytest

from deepseek.datasets import FeatureEncoder, FeatureSpec, fit_features
from deepseek.errors import CheckpointError, ConfigError, DataError
from deepseek.recsys import RealTimeCrosses
from deepseek.recsys import real_time_crosses as module

KEYS = ["user", ("item", "genre")]
WINDOWS = ["1h", "1d", "decay_1h", "all"]
DAY = 86400


def table(num=400, seed=0, step=900):
    """Events of few users and items; many at the same time."""
    rng = np.random.default_rng(seed)
    return {
        "time": np.sort(rng.integers(0, 2 * DAY, num)) // step * float(step),
        "user": rng.integers(0, 8, num),
        "item": rng.integers(0, 6, num),
        "genre": rng.integers(0, 3, num),
        "click": rng.integers(0, 2, num),
    }


def rows_of(columns):
    names = list(columns)
    return [
        dict(zip(names, (each.item() for each in row), strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_features_are_what_counting_by_hand_gives():
    columns = table()
    found = RealTimeCrosses(KEYS, windows=WINDOWS, prior=0.2, smoothing=5).replay(columns)
    time, click = columns["time"], columns["click"]
    for i in range(len(time)):
        for key in (("user",), ("item", "genre")):
            name = "*".join(key)
            before = np.all([columns[part] == columns[part][i] for part in key], axis=0)
            before &= time < time[i]
            for window, part_s in (("1h", 450), ("1d", 10800)):
                parts = time // part_s
                seen = before & (parts > parts[i] - 8)
                assert found[f"{name}.{window}.shown"][i] == seen.sum()
                assert found[f"{name}.{window}.clicked"][i] == click[seen].sum()
                rate = (click[seen].sum() + 1) / (seen.sum() + 5)
                assert found[f"{name}.{window}.rate"][i] == np.float32(rate)
            assert found[f"{name}.all.shown"][i] == before.sum()
            age = time[i] // 900 - time // 900
            weights = 2.0 ** (-age[before & (age < 32)] / 4)
            assert found[f"{name}.decay_1h.shown"][i] == pytest.approx(weights.sum(), rel=1e-6)


def test_one_event_at_a_time_gives_the_bits_of_the_table_and_the_same_state():
    columns = table(200)
    whole, single = (RealTimeCrosses(KEYS, windows=WINDOWS) for _ in range(2))
    found = whole.replay(columns)
    for i, row in enumerate(rows_of(columns)):
        seen = single.read(row)
        single.update(row)
        assert all(np.float32(seen[name]) == found[name][i] for name in whole.feature_names)
    assert same_state(whole, single)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_how_events_are_cut_into_batches_changes_nothing(size, monkeypatch):
    columns = table(150)
    whole = RealTimeCrosses(KEYS, windows=WINDOWS)
    found = whole.replay(columns)
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", size)
    parts = RealTimeCrosses(KEYS, windows=WINDOWS)
    again = parts.replay(columns)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert same_state(whole, parts)


def test_the_future_changes_no_feature_of_the_past():
    columns = table()
    moment = columns["time"][200]
    past = columns["time"] <= moment
    other = {name: values.copy() for name, values in columns.items()}
    rng = np.random.default_rng(1)
    for name in ("user", "item", "genre", "click"):
        other[name][~past] = rng.permutation(other[name][~past])
    # of the present, what came of it
    other["click"][columns["time"] == moment] = 1 - columns["click"][columns["time"] == moment]
    one, two = (RealTimeCrosses(KEYS, windows=WINDOWS).replay(each) for each in (columns, other))
    assert all(np.array_equal(one[name][past], two[name][past]) for name in one)
    assert any(not np.array_equal(one[name], two[name]) for name in one)


def test_rows_may_come_in_any_order():
    columns = table(step=1)
    columns["time"] = np.arange(len(columns["time"])) * 60.0
    order = np.random.default_rng(2).permutation(len(columns["time"]))
    shuffled = {name: values[order] for name, values in columns.items()}
    one, two = (RealTimeCrosses(KEYS).replay(each) for each in (columns, shuffled))
    assert all(np.array_equal(one[name][order], two[name]) for name in one)


def test_events_of_the_same_time_do_not_see_each_other():
    columns = {"time": [5.0] * 4, "item": ["a"] * 4, "click": [1] * 4}
    crosses = RealTimeCrosses(["item"], windows=["all"])
    assert not crosses.replay(columns)["item.all.shown"].any()
    assert crosses.read({"time": 5, "item": "a"})["item.all.shown"] == 0
    assert crosses.read({"time": 5.001, "item": "a"})["item.all.shown"] == 4


def test_a_click_counts_from_its_arrival():
    columns = {
        "time": np.array([0.0, 10.0, 20.0, 30.0]),
        "item": ["a"] * 4,
        "click": [1, 1, 0, 0],
        "arrived": np.array([15.0, np.nan, np.nan, np.nan]),
    }
    crosses = RealTimeCrosses(["item"], windows=["all"])
    found = crosses.replay(columns, label_time="arrived")
    assert found["item.all.shown"].tolist() == [0, 1, 2, 3]
    assert found["item.all.clicked"].tolist() == [0, 0, 1, 1]  # the second never arrived
    live = RealTimeCrosses(["item"], windows=["all"])
    for time in (0, 10):
        live.update({"time": time, "item": "a"}, clicked=0)
    live.update({"time": 15, "item": "a"}, shown=0, clicked=1)
    for time in (20, 30):
        live.update({"time": time, "item": "a"}, clicked=0)
    assert same_state(crosses, live)


def test_reading_changes_nothing():
    crosses = RealTimeCrosses(KEYS, windows=WINDOWS)
    crosses.replay(table(100))
    other = RealTimeCrosses(KEYS, windows=WINDOWS)
    other.replay(table(100))
    events = [{"time": 1e6, "user": n, "item": 1, "genre": 2} for n in range(10)]
    many = crosses.read(events)
    assert same_state(crosses, other)
    single = [crosses.read(event)["user.all.rate"] for event in events]
    assert np.array_equal(many["user.all.rate"], np.array(single, np.float32))


def test_a_saved_state_goes_on_as_if_nothing_had_been(tmp_path):
    columns = table()
    half = {name: values[:201] for name, values in columns.items()}
    rest = {name: values[201:] for name, values in columns.items()}
    whole = RealTimeCrosses(KEYS, windows=WINDOWS)
    found = whole.replay(columns)
    first = RealTimeCrosses(KEYS, windows=WINDOWS)
    first.replay(half)
    first.save(tmp_path / "crosses")
    second = RealTimeCrosses.load(tmp_path / "crosses")
    again = second.replay(rest)
    assert all(np.array_equal(found[name][201:], again[name]) for name in found)
    assert same_state(whole, second)
    assert [file.name for file in tmp_path.iterdir()] == ["crosses"]


def test_memory_is_bounded_and_expiry_does_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(module, "EXPIRE_EVERY", 64)
    num = 640
    columns = {"time": np.arange(num) * 60.0, "item": np.arange(num), "click": [0] * num}
    one = RealTimeCrosses(["item"], windows=["1h"], max_keys=50)
    one.replay(columns)
    assert one.num_keys <= 50 + 64
    two = RealTimeCrosses(["item"], windows=["1h"], max_keys=50)
    for row in range(0, num, 13):
        two.replay({name: values[row : row + 13] for name, values in columns.items()})
    assert same_state(one, two)
    aged = RealTimeCrosses(["item"], windows=["1h"], expire_after_s=600)
    aged.replay(columns)
    assert aged.num_keys <= 11
    # what was forgotten begins anew
    last = {"time": num * 60.0, "item": 0}
    assert aged.read(last)["item.1h.shown"] == 0


def test_features_reach_a_model_by_the_same_code_offline_and_online():
    columns = table(200)
    crosses = RealTimeCrosses(KEYS, windows=["1h", "all"])
    found = crosses.replay(columns)
    spec = fit_features(FeatureSpec().updated("dense", **crosses.features()), [columns | found])
    encoder = FeatureEncoder(spec)
    offline = encoder.encode(columns | found).dense
    live = RealTimeCrosses(KEYS, windows=["1h", "all"])
    for i, row in enumerate(rows_of(columns)):
        assert np.array_equal(encoder.encode_rows([row | live.read(row)]).dense[0], offline[i])
        live.update(row)


def test_skew_on_every_row_of_movielens(movielens):
    """Replayed in one go, and in small batches as they would come in."""
    keys = ["user_id", "item_id", ("user_id", "genre")]
    named = {name: movielens[name] for name in ("user_id", "item_id", "genre", "time", "click")}
    named["time"] = named["time"] - named["time"][0]
    whole = RealTimeCrosses(keys)
    found = whole.replay(named)
    parts = RealTimeCrosses(keys)
    for start in range(0, 100_000, 4999):
        part = {name: values[start : start + 4999] for name, values in named.items()}
        again = parts.replay(part)
        for name, values in again.items():
            assert np.array_equal(values, found[name][start : start + 4999]), name
    assert same_state(whole, parts)


GOOD = {"time": 10, "item": "a", "click": 1}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"time": 10, "click": 1}, "'item' is missing"),
        ({"item": "a", "click": 1}, "'time' is missing"),
        ({"time": 10, "item": "a"}, "'click' is missing"),
        ({**GOOD, "time": 4}, "is before 5"),
        ({**GOOD, "time": None}, "time is missing in 1"),
        ({**GOOD, "time": "soon"}, "'soon'.*not a number"),
        ({**GOOD, "click": 3}, "click=3 is neither"),
        ({**GOOD, "item": ["a"]}, "is a list, not a category"),
    ],
)
def test_a_wrong_event_is_refused_and_changes_nothing(event, words):
    crosses = RealTimeCrosses(["item"])
    crosses.update({"time": 5, "item": "a", "click": 0})
    before = crosses.state_dict()
    with pytest.raises(DataError, match=words):
        crosses.update(event)
    assert all(np.array_equal(before[name], crosses.state_dict()[name]) for name in before)


def test_late_events_may_count_from_now_on():
    crosses = RealTimeCrosses(["item"], windows=["all"], late="now")
    crosses.update({"time": 100, "item": "a", "click": 0})
    crosses.update({"time": 50, "item": "a", "click": 1})
    assert crosses.read({"time": 100, "item": "a"})["item.all.shown"] == 0
    assert crosses.read({"time": 101, "item": "a"})["item.all.shown"] == 2


def test_follow_keeps_the_order_of_time():
    events = [{"time": time, "item": "a"} for time in (100, 300, 200, 150, 400)]
    shown, clicked = [1] * 5, [0, 1, 0, 0, 1]
    crosses = RealTimeCrosses(["item"], windows=["1h"])
    with pytest.raises(DataError, match="time=200 is before 300"):
        crosses.follow(events, shown, clicked)
    assert same_state(crosses, RealTimeCrosses(["item"], windows=["1h"]))
    whole, one_by_one = (RealTimeCrosses(["item"], windows=["1h"], late="now") for _ in range(2))
    found = whole.follow(events, shown, clicked)
    parts = [
        one_by_one.follow([e], [s], [c]) for e, s, c in zip(events, shown, clicked, strict=True)
    ]
    assert np.array_equal(found, np.concatenate(parts))
    assert found[:, 0].tolist() == [0, 1, 1, 1, 4]
    assert same_state(whole, one_by_one)


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": []},
        {"keys": ["a", "a"]},
        {"keys": ["a"], "windows": ["1y"]},
        {"keys": ["a"], "windows": ["1h", "1h"]},
        {"keys": ["a"], "prior": 2.0},
        {"keys": ["a"], "smoothing": 0},
        {"keys": ["a"], "max_keys": 0},
        {"keys": ["a"], "expire_after_s": -1},
        {"keys": ["a"], "late": "maybe"},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ConfigError):
        RealTimeCrosses(**arguments)


def test_wrong_states_and_tables_are_refused(tmp_path):
    crosses = RealTimeCrosses(["item"], windows=["1h"])
    with pytest.raises(CheckpointError, match="not one of these keys"):
        crosses.load_state_dict(RealTimeCrosses(["item"], windows=["1d", "1h"]).state_dict())
    (tmp_path / "x").write_bytes(b"no such file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        RealTimeCrosses.load(tmp_path / "x")
    columns = {"time": [5.0], "item": ["a"], "click": [1], "arrived": [4.0]}
    with pytest.raises(DataError, match="arrived=4 of row 0 is before"):
        crosses.replay(columns, label_time="arrived")
    with pytest.raises(ConfigError, match="cannot be taken back"):
        crosses.update(GOOD, shown=-1)
