import json

import pytest

from deepseek.datasets import DataSpec, FieldSpec, ImageDataset, Normalization
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import CheckpointError, ConfigError


def make_spec(**changes) -> DataSpec:
    arguments = {
        "task": "classification",
        "fields": {"inputs": FieldSpec((3, 8, 8), "uint8"), "targets": FieldSpec((), "int64")},
        "class_names": ("cat", "dog"),
        "class_counts": (3, 4),
        "transform": "resize_8",
        "normalization": Normalization((0.5,) * 3, (0.25,) * 3),
    }
    return DataSpec(**{**arguments, **changes})


@pytest.mark.parametrize("normalization", [None, Normalization((0.1,), (0.2,))])
@pytest.mark.parametrize("transform", [None, "resize_8"])
def test_json_round_trip(normalization, transform):
    spec = make_spec(normalization=normalization, transform=transform)
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_score_that_a_detector_reports_from_is_kept_where_it_is_known():
    assert "min_score" not in make_spec().to_json()
    spec = make_spec(min_score=0.25)
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(CheckpointError, match="min_score='2'"):
        DataSpec.from_json({**make_spec().to_json(), "min_score": 2})


def test_how_a_table_was_read_is_kept_where_its_files_do_not_say_it():
    assert "reading" not in make_spec().to_json()
    spec = make_spec(reading=TableOptions(column_names=("user", "click"), delimiter=";"))
    stored = json.loads(json.dumps(spec.to_json()))
    assert stored["reading"] == {"column_names": ["user", "click"], "delimiter": ";"}
    assert DataSpec.from_json(stored) == spec
    for wrong in (
        {"layout": "critoe"},
        {"columns": []},
        {"column_names": [1]},
        3,
        {"delimiter": 1},
    ):
        with pytest.raises(CheckpointError, match="data spec is malformed"):
            DataSpec.from_json({**stored, "reading": wrong})


def test_spec_of_a_data_set_round_trips():
    spec = ImageDataset("digits", "resize_8", channels=1).spec
    assert spec.num_classes == 10
    assert sum(spec.class_counts) == 1797
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"task": 3},
        {"fields": []},
        {"fields": {"inputs": {"shape": [3, "8"], "dtype": "uint8"}}},
        {"fields": {"inputs": {"shape": [3, 8], "dtype": "load"}}},
        {"fields": {"inputs": {"shape": [3, 8]}}},
        {"class_names": "cat"},
        {"class_names": ["cat"]},
        {"class_names": ["cat", "cat"]},
        {"class_counts": [1.5, 2]},
        {"transform": ["resize_8"]},
        {"normalization": {"mean": [0.5]}},
        {"normalization": {"mean": [0.5], "std": [0.0]}},
        {"normalization": {"mean": [0.5], "std": "1"}},
        {"surplus": 1},
    ],
)
def test_stored_content_is_checked(changes):
    with pytest.raises(CheckpointError):
        DataSpec.from_json({**make_spec().to_json(), **changes})


@pytest.mark.parametrize("content", [None, [], {"task": "classification"}])
def test_stored_content_must_be_a_whole_spec(content):
    with pytest.raises(CheckpointError):
        DataSpec.from_json(content)


def test_counts_must_match_names():
    with pytest.raises(ConfigError, match="3 entries for 2 class_names"):
        make_spec(class_counts=(1, 2, 3))
