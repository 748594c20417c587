"""Features: what they are, and the same for whole columns and single rows."""

import json
import os
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepseek.datasets import (
    ColumnSource,
    FeatureEncoder,
    FeatureSpec,
    dump_features,
    fit_features,
    infer_features,
    read_features,
    write_features,
)
from deepseek.datasets.feature_values import hash_of, mix_hashes, numbers_of, token_of
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import ConfigError, DataError

TABLE = {
    "user": ["a", "b", "a", None, "c", "a", "b"],
    "city": [7, 7, 8, 8, 8, None, 9],
    "price": [1.0, 2.0, None, 4.0, 100.0, 0.0, 7.0],
    "items": [["x"], [], ["x", "y"], None, ["y", "x", "x"], ["z"], ["x"]],
    "click": [1, 0, 1, 0, 0, 1, 1],
}
SPEC = {
    "sparse": {"user": {}, "place": {"column": "city", "encoding": "hash", "buckets": 50}},
    "dense": {"price": {"log": True}, "range": {"column": "price", "buckets": 3}},
    "sequence": {"items": {"max_length": 2}},
    "cross": {"user*place": {"of": ["user", "place"], "buckets": 1000}},
    "label": {"click": {}},
}


def source(table=TABLE):
    return ColumnSource(table)


def encoder(spec=SPEC, table=TABLE):
    return FeatureEncoder(fit_features(FeatureSpec.from_json(spec), source(table)))


def columns(table=TABLE):
    (chunk,) = source(table).chunks()
    return chunk


def rows(chunk):
    values = {name: each.to_pylist() for name, each in chunk.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def same(one, other):
    """Whether features are equal to the bit."""
    return (
        np.array_equal(one.sparse, other.sparse)
        and one.dense.tobytes() == other.dense.tobytes()
        and all(
            np.array_equal(*pair)
            for name in one.sequences
            for pair in zip(one.sequences[name], other.sequences[name], strict=True)
        )
    )


def check_skew(found, chunk, size):
    """Rows that come one by one, or some at a time, have the features of the whole table."""
    whole, all_rows = found.encode(chunk), rows(chunk)
    for start in range(0, len(all_rows), size):
        part = found.encode_rows(all_rows[start : start + size])
        stop = start + len(part.sparse)
        assert np.array_equal(part.sparse, whole.sparse[start:stop])
        assert part.dense.tobytes() == np.ascontiguousarray(whole.dense[start:stop]).tobytes()


def test_ids_are_by_frequency_and_rare_and_missing_values_have_their_own():
    found = encoder().encode(columns())
    assert found.sparse[:, 0].tolist() == [2, 3, 2, 0, 1, 2, 3]  # c occurs once
    assert found.sparse[5, 1] == 0
    assert found.sparse[0, 1] == 2 + hash_of("7") % 50


def test_numbers_are_scaled_and_missing_ones_marked():
    found = encoder()
    assert found.spec.numbers == ("price", "price.missing")
    logs = np.log1p([1, 2, 4, 100, 0, 7])
    dense = found.encode(columns()).dense
    assert dense[:, 1].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert dense[2, 0] == 0
    assert dense[0, 0] == pytest.approx((logs[0] - logs.mean()) / logs.std(), abs=1e-6)


def test_ranges_hold_as_many_rows_each():
    found = encoder().encode(columns())
    # 0 1 | 2 4 | 7 100
    assert found.sparse[:, 2].tolist() == [2, 3, 0, 3, 4, 2, 4]


def test_sequences_keep_their_newest_items():
    batch = encoder().encode(columns()).batch()
    assert batch["length.items"].tolist() == [1, 0, 2, 0, 2, 1, 1]
    # x: 2, y: 3, z once
    assert batch["sequence.items"].tolist() == [
        [2, 0], [0, 0], [2, 3], [0, 0], [2, 2], [1, 0], [2, 0],
    ]  # fmt: skip


def test_a_cross_is_a_hash_of_the_pair():
    found = encoder().encode(columns()).sparse[:, 3]
    pair = [np.array([hash_of(each)], np.uint64) for each in ("a", "7")]
    assert found[0] == 2 + int(mix_hashes(pair)[0]) % 1000
    assert len(set(found.tolist())) == 7
    swapped = mix_hashes(pair[::-1])
    assert swapped != mix_hashes(pair)


def test_shared_ids_are_those_of_the_other_feature():
    spec = {
        "sparse": {"item": {"min_count": 1}},
        "sequence": {"history": {"shares": "item", "separator": "|"}},
        "label": {"click": {}},
    }
    table = {"item": ["p", "q", "p"], "history": ["q|p", "", "r| q"], "click": [1, 0, 1]}
    batch = encoder(spec, table).encode(columns(table)).batch()
    assert batch["sparse"][:, 0].tolist() == [2, 3, 2]
    assert batch["sequence.history"].tolist() == [[3, 2], [0, 0], [1, 3]]


@pytest.mark.parametrize("size", [1, 3])
def test_single_rows_have_the_features_of_the_table(size):
    check_skew(encoder(), columns(), size)
    assert same(encoder().encode(columns()), encoder().encode_rows(rows(columns())))


@pytest.mark.parametrize("size", [1, 100])
def test_skew_on_every_row_of_criteo(real_data, size):
    folder = real_data / "criteo_kaggle_head8k"
    train = ColumnSource(folder / "train.tsv", TableOptions("criteo"))
    spec = infer_features(train, crosses=[("C1", "C2"), ("C3", "C9")])
    found = FeatureEncoder(fit_features(spec, train))
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        if size > 1 or name != "train.tsv":
            for chunk in ColumnSource(folder / name, TableOptions("criteo")).chunks():
                check_skew(found, chunk, size)


ADULT = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation",
    "relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week",
    "native_country", "income",
)  # fmt: skip


def test_skew_on_every_row_of_adult(real_data):
    options = TableOptions(column_names=ADULT)
    train = ColumnSource(real_data / "adult" / "adult.data", options)
    spec = infer_features(train, {"income": {"positive": [">50K", ">50K."]}})
    numbers = {"age", "fnlwgt", "capital_gain", "capital_loss", "hours_per_week"}
    assert set(spec.dense) == {*numbers, "fnlwgt_range"}
    assert numbers - {"fnlwgt"} == {n[:-6] for n in spec.sparse if n.endswith("_value")}
    found = FeatureEncoder(fit_features(spec, train))
    num_rows = 0
    for name in ("adult.data", "adult.test"):
        for chunk in ColumnSource(real_data / "adult" / name, options).chunks():
            check_skew(found, chunk, 250)
            num_rows += len(found.labels(chunk))
    assert num_rows == 48842


def test_numbers_in_json_are_those_in_a_file():
    """What came as text in training may come as a number in service."""
    spec = {"sparse": {"a": {"min_count": 1}}, "dense": {"b": {}}, "label": {"click": {}}}
    table = {"a": ["7", " 8", "7 "], "b": ["0.1", "1e3", ""], "click": ["1", "0", "1"]}
    found = encoder(spec, table)
    offline = found.encode(columns(table))
    values = [{"a": 7, "b": 0.1}, {"a": 8.0, "b": 1000}, {"a": "7", "b": None}]
    assert same(offline, found.encode_rows(values))


@pytest.mark.parametrize(
    ("value", "token"),
    [("a ", "a"), ("", None), (None, None), (3, "3"), (3.0, "3"), (0.5, "0.5"), (True, "true"),
     (float("nan"), None), (b"x", "x")],
)  # fmt: skip
def test_a_category_is_a_text(value, token):
    assert token_of(value) == token


def test_times_are_seconds():
    times = pa.array([0, 1_500_000], pa.timestamp("us"))
    assert numbers_of(times, "time").tolist() == [0, 1.5]


def test_half_of_a_surrogate_pair_is_no_number():
    with pytest.raises(DataError, match="price: a text that cannot be written as UTF-8"):
        numbers_of(["1.5", "\ud800"], "price")


def test_a_spec_goes_through_a_file(tmp_path):
    spec = encoder().spec
    write_features(spec, tmp_path / "features.yaml")
    assert read_features(tmp_path / "features.yaml") == spec
    assert FeatureSpec.from_json(spec.to_json()) == spec
    lines = dump_features(infer_features(source(), "click")).splitlines()
    assert lines == [
        "sparse:", "  user: {column: user}", "  city: {column: city}", "  price: {column: price}",
        "sequence:", "  items: {column: items}",
        "label:", "  click: {column: click}",
    ]  # fmt: skip


def test_inference_wants_many_values_often_and_leaves_out_what_says_nothing():
    num = 20_000
    rng = np.random.default_rng(0)
    table = {
        "session_id": [f"s{n}" for n in range(num)],
        "device_id": [f"d{n // 3 * 2}" for n in range(num // 2)] * 2,
        "profit": rng.standard_t(1, num),
        "age": rng.integers(0, 90, num),
        "tail": rng.pareto(1, num) * 10,
        "same": ["x"] * num,
        "tags": ["a|b", "c"] * (num // 2),
        "timestamp": range(num),
        "label": rng.integers(0, 2, num),
    }
    table["tags"] = ["a|b", "c|d|e"] * (num // 2)
    table["zone"] = [f"z{n % 12_000}" for n in range(num)]
    spec = infer_features(source(table))
    assert (spec.sparse["zone"].encoding, spec.sparse["zone"].min_count) == ("vocabulary", 5)
    assert spec.sparse["device_id"].min_count == 2
    assert spec.dense["tail"].log
    assert spec.dense["profit"].log  # on both sides of 0
    assert spec.dense["profit_range"].buckets == 32
    assert spec.sparse["age_value"].column == "age"
    small = {name: values[:9000] for name, values in table.items()}
    assert "age_value" not in infer_features(source(small)).sparse
    assert not spec.dense["age"].log
    assert spec.sequence["tags"].separator == "|"
    assert {*spec.columns} == {"device_id", "zone", "profit", "age", "tail", "tags"}
    crossed = infer_features(source(table), crosses=[("session_id", "device_id")])
    assert "session_id" in crossed.sparse  # asked for


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"spares": {}}, "no section 'spares'"),
        ({"sparse": {"a": {"encodings": "hash"}}}, "sparse.a: .*encodings"),
        ({"sparse": {"a": {"encoding": "hashed"}}}, "sparse.a"),
        ({"sparse": {"a": 3}}, "is a int, not a mapping"),
        ({"sparse": []}, "not a mapping"),
        ({"cross": {"c": {"of": ["a", "b"]}}}, "crosses 'a'"),
        ({"sequence": {"h": {"shares": "a"}}}, "shares 'a'"),
        ({"sparse": {"a": {}}, "dense": {"a": {}}}, "'a' is taken twice"),
        ({"label": {"y": {"kind": "number", "at_least": 3}}}, "is a number"),
        ({"label": {"y": {"positive": ["a"], "at_least": 3}}}, "both"),
        ({"label": {"y": {"negative": ["a"]}}}, "negative and no positive"),
        (
            {"label": {"y": {"positive": ["a"], "negative": ["a"]}}},
            "'a' as positive and as negative",
        ),
    ],
)
def test_a_wrong_spec_is_refused(content, words):
    with pytest.raises(ConfigError, match=words):
        FeatureSpec.from_json(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"price": None}, "'price' is missing"),
        ({"price": "dear"}, "price='dear'.*not a number"),
        ({"price": "inf"}, "not finite"),
        ({"price": 10**400}, "price: a whole number of 1329 bits is too large"),
        ({"price": "\ud800"}, "cannot be written as UTF-8 is not a number"),
        ({"price": [1]}, "is a list, not a number"),
        ({"user": {"a": 1}}, "is a dict, not a category"),
        ({"items": 3}, "holds int, not sequences"),
        ({"items": "x y"}, "holds str, not sequences"),
    ],
)
def test_a_wrong_row_is_refused(change, words):
    row = {"user": "a", "city": 7, "price": 1.0, "items": ["x"]}
    row |= change
    if change == {"price": None}:
        del row["price"]
    with pytest.raises(DataError, match=words):
        encoder().encode_rows([row])


@pytest.mark.parametrize(
    ("entry", "labels", "words"),
    [
        ({}, [1, 2], "click='2' is neither 1 nor 0"),
        ({}, [1, None], "missing in row 1"),
        ({"at_least": 4}, ["5", "many"], "not a number"),
        ({"kind": "number"}, [1.0, float("nan")], "missing in row 1"),
    ],
)
def test_wrong_labels_are_refused(entry, labels, words):
    spec = FeatureSpec.from_json({"label": {"click": entry}})
    with pytest.raises(DataError, match=words):
        FeatureEncoder(spec).labels({"click": labels})


def test_labels_of_several_tasks():
    spec = FeatureSpec.from_json(
        {
            "label": {
                "liked": {"column": "stars", "at_least": 4},
                "stars": {"kind": "number"},
                "bought": {"positive": ["yes"], "missing": "mask"},
            }
        }
    )
    table = {"stars": [5, 3, 4], "bought": ["yes", None, "no"]}
    labels = FeatureEncoder(spec).labels(table)
    assert labels[:, :2].tolist() == [[1, 5], [0, 3], [1, 4]]
    assert labels[[0, 2], 2].tolist() == [1, 0]
    assert np.isnan(labels[1, 2])


def test_a_value_that_is_neither_a_yes_nor_a_no_is_an_error():
    label = {"column": "income", "positive": [">50K"], "negative": ["<=50K"]}
    encoder = FeatureEncoder(FeatureSpec.from_json({"label": {"rich": label}}))
    assert encoder.labels({"income": [">50K", "<=50K"]}).tolist() == [[1], [0]]
    with pytest.raises(DataError, match=r"income='>50K\.' is neither a yes \(>50K\) nor a no"):
        encoder.labels({"income": ["<=50K", ">50K."]})


def test_an_unfitted_spec_computes_nothing():
    with pytest.raises(ConfigError, match="not fitted"):
        FeatureEncoder(FeatureSpec.from_json({"sparse": {"a": {}}}))


def test_fitting_in_parts_is_fitting_at_once():
    whole = columns()
    parts = [{n: a.slice(i, 2) for n, a in whole.items()} for i in range(0, 7, 2)]
    one = fit_features(FeatureSpec.from_json(SPEC), [whole])
    two = fit_features(FeatureSpec.from_json(SPEC), parts)
    assert one.sparse == two.sparse
    assert one.dense["range"] == two.dense["range"]
    assert one.dense["price"].mean == pytest.approx(two.dense["price"].mean, rel=1e-12)
    assert one.dense["price"].std == pytest.approx(two.dense["price"].std, rel=1e-12)


def test_features_can_be_taken_out():
    spec = FeatureSpec.from_json(SPEC).without("user", "price")
    assert list(spec.sparse) == ["place"]
    assert not spec.cross
    assert list(spec.dense) == ["range"]
    with pytest.raises(ConfigError, match="no feature 'users'"):
        spec.without("users")


def test_a_category_of_pandas_is_sparse(tmp_path):
    num = 80
    table = {
        "kind": pa.array([f"k{n // 10}" for n in range(num)]).dictionary_encode(),
        "postcode": pa.array([str(80_000 + n) for n in range(num)]).dictionary_encode(),
        "raw": pa.array([b"x", b"\xff"] * (num // 2)),
        "click": [0, 1] * (num // 2),
    }
    # two files: each has a dictionary of its own
    for part in (0, 1):
        rows = pa.table(table).slice(part * num // 2, num // 2)
        pq.write_table(rows.unify_dictionaries(), tmp_path / f"{part}.parquet")
    for found in (source(pa.table(table)), ColumnSource(tmp_path)):
        spec = infer_features(found)
        assert {*spec.sparse} == {"kind", "postcode", "raw"}
        assert not spec.dense
        (whole,) = ColumnSource(pa.table(table)).chunks()
        check_skew(FeatureEncoder(fit_features(spec, found)), whole, 7)
    chosen = {"dense": {"postcode": {"standardise": False}}, "label": {"click": {}}}
    assert encoder(chosen, table).encode(whole).dense[:, 0].tolist() == list(range(80_000, 80_080))


def test_numbers_with_a_few_texts_among_them_are_named():
    prices = [f"{n / 8}" for n in range(80)]
    table = {"price": [*prices, "NaN", ""], "click": [0, 1] * 41}
    assert list(infer_features(source(table)).dense) == ["price"]
    table["price"][0] = "N/A"
    with pytest.warns(UserWarning, match=r"of its 80 values all are numbers but 'N/A'"):
        assert list(infer_features(source(table)).sparse) == ["price"]


def test_a_number_beyond_32_bits_is_refused_by_name():
    plain = {"standardise": False, "indicator": False}
    spec = FeatureSpec.from_json({"dense": {"age": plain, "price": plain}})
    rows = [{"age": 1, "price": 3e38}, {"age": 1, "price": -1e300}]
    assert np.isfinite(FeatureEncoder(spec).encode_rows(rows[:1]).dense).all()
    with pytest.raises(DataError, match=r"price \(row 1 of its part\) is too large for a 32-bit"):
        FeatureEncoder(spec).encode_rows(rows)


def test_decimals_of_parquet_are_numbers(tmp_path):
    prices = [Decimal(n) / 8 for n in range(80)]
    table = {"price": prices, "size": [Decimal(n % 3) for n in range(80)], "click": [0, 1] * 40}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (whole,) = ColumnSource(tmp_path).chunks()
    assert pa.types.is_decimal(whole["price"].type)
    spec = infer_features(ColumnSource(tmp_path))
    assert (list(spec.dense), list(spec.sparse)) == (["price"], ["size"])
    fitted = fit_features(spec, ColumnSource(tmp_path))
    assert set(fitted.sparse["size"].vocabulary) == {"0", "1", "2"}
    check_skew(FeatureEncoder(fitted), whole, 7)
    assert numbers_of(prices[:3], "price").tolist() == [0, 0.125, 0.25]
    assert token_of(Decimal("12345678901234567890.00")) == "12345678901234567890"
    assert token_of(Decimal("1.50")) == token_of(1.5)
    assert token_of(Decimal("NaN")) is None


def test_small_files_are_inferred_as_one_large_one(tmp_path):
    num = 60
    table = pa.table({
        "shop": [f"s{n // 10}" for n in range(num)],
        "price": [n / 8 for n in range(num)],
        "click": [0, 1] * (num // 2),
    })  # fmt: skip
    for part in range(6):  # in each of which shop is constant
        pq.write_table(table.slice(10 * part, 10), tmp_path / f"{part}.parquet")
    spec = infer_features(source(table))
    assert (list(spec.sparse), list(spec.dense)) == (["shop"], ["price"])
    assert infer_features(ColumnSource(tmp_path)) == spec
    chunks = pa.concat_tables([table.slice(n, 1) for n in range(num)])
    assert infer_features(source(chunks)) == spec


def test_files_of_json_that_differ_in_a_type_are_inferred_as_one(tmp_path):
    values = [[1, 2, 3], [1.5, 2.5, 40.25], ["x", 7.0, "y"]]
    for number, own in enumerate(values):
        rows = [{"kind": value, "size": n, "click": n % 2} for n, value in enumerate(own)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "kind" in infer_features(ColumnSource(tmp_path)).sparse
    (tmp_path / "2.jsonl").unlink()
    assert "kind" in infer_features(ColumnSource(tmp_path)).dense


def test_numbers_among_texts_of_json_are_the_categories_of_a_row(tmp_path):
    values = ["x", 7.0, 7, 2.5, True, None, " y "]
    rows = [{"kind": value, "click": n % 2} for n, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = ColumnSource(tmp_path / "a.jsonl")
    (whole,) = found.chunks()
    assert whole["kind"].to_pylist() == ["x", "7", "7", "2.5", "true", None, " y "]
    spec = FeatureSpec.from_json({"sparse": {"kind": {}}, "label": {"click": {}}})
    made = FeatureEncoder(fit_features(spec, found))
    assert np.array_equal(made.encode(whole).sparse, made.encode_rows(rows).sparse)


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    rows = [{"kind": "a", "click": 0}, {"kind": "\ud83d", "click": 1}]
    with pytest.raises(DataError, match="in memory, row 1: the column 'kind' holds half of a"):
        source({name: [row[name] for row in rows] for name in rows[0]})
    for first in ("a", 1):  # one kind, and two
        rows[0]["kind"] = first
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: the column 'kind' holds half"):
            list(ColumnSource(tmp_path / "a.jsonl").chunks())
    rows[1] = {"kind": "b", "click": 1, "\ud83d": 2.5}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the name of a column holds half of a"):
        ColumnSource(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="in memory: the name of a column holds half of a"):
        source({"\ud83d": [1]})


def test_whole_numbers_of_more_than_64_bits_are_categories_of_json(tmp_path):
    place = tmp_path / "a.jsonl"
    place.write_text(f'{{"user": {10**38}, "click": 0}}\n\n{{"user": 7, "click": 1}}\n')
    (chunk,) = ColumnSource(place).chunks()
    assert chunk["user"].to_pylist() == [str(10**38), "7"]
    place.write_text('{"user": 1}\n{"user": ' + "9" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: this is not JSON: .*4300 digits"):
        ColumnSource(place)
    with pytest.raises(DataError, match="'user' holds a whole number of more than 64 bits"):
        source({"user": [10**38]})


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_table_whose_name_is_no_utf8_has_a_hash(tmp_path):
    found = set()
    for name in (b"\xff.csv", b"\xfe.csv"):
        place = os.fsencode(tmp_path) + b"/" + name
        with open(place, "w") as file:
            file.write("kind,click\na,0\nb,1\n")
        found.add(ColumnSource(os.fsdecode(place)).content_hash())
    assert len(found) == 2
