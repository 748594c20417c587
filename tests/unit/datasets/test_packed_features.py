import numpy as np
import pytest
import torch

from deepseek.datasets import ColumnSource, FeatureEncoder, fit_features, infer_features
from deepseek.datasets.feature_values import Repeated
from deepseek.datasets.packed_features import PackedFeatures

ROWS = {
    "user": ["a", "b", None, "a"],
    "price": [1.5, None, -2.0, 7.0],
    "last": [["x", "y", "z"], [], ["x"], ["q", "x"]],
    "tags": [[], ["m"], ["m", "n"], []],
    "click": [1, 0, 0, 1],
}


@pytest.fixture
def encoder():
    source = ColumnSource(ROWS)
    spec = infer_features(source, "click")
    short = spec.sequence["last"].model_copy(update={"max_length": 2})
    return FeatureEncoder(fit_features(spec.updated("sequence", last=short), source))


def test_packed_features_are_unpacked_to_the_same_batch(encoder):
    features = encoder.encode(ROWS)
    packing = PackedFeatures(encoder.spec)
    rows = packing.pack(features)
    assert rows.shape == (4, *packing.field.shape)
    found, wanted = packing.unpack(rows), features.batch()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    parts = [packing.unpack(rows[n : n + 1])["dense"] for n in range(4)]
    assert torch.equal(torch.cat(parts), wanted["dense"])


def test_a_column_that_all_rows_share_gives_the_features_of_its_rows(encoder):
    for name, value in (
        ("user", "b"),
        ("price", None),
        ("price", "3.5"),
        ("last", ["y", "x", "q"]),
    ):
        shared = encoder.encode({**ROWS, name: Repeated(value, 4)}).batch()
        apart = encoder.encode({**ROWS, name: [value] * 4}).batch()
        assert shared.keys() == apart.keys()
        for field, tensor in apart.items():
            assert np.array_equal(shared[field], tensor), (name, field)
