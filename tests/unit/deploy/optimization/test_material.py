import pytest
import torch

from deepseek.deploy.optimization.material import count_rows, gather, read_rows
from deepseek.errors import ConfigError


def test_samples_are_drawn_once_and_calibration_is_apart(engine, digits, tmp_path):
    path = tmp_path / "data.safetensors"
    found = gather(engine, digits, path, 32, 60.0, 256)
    assert (found.num_samples, found.num_available, found.has_labels) == (256, 1797, True)
    inputs, calibration = (read_rows(path, name) for name in ("inputs", "calibration"))
    assert (len(inputs), len(calibration)) == (256, 128)
    batch, _ = digits.get_batch(list(range(len(digits))), 0)
    rows = batch["inputs"].flatten(1)
    where = [(rows == each.flatten()).all(1).nonzero()[0, 0].item() for each in (*inputs,)]
    assert torch.equal(read_rows(path, "targets"), batch["targets"][where])
    assert where != sorted(where)
    again = gather(engine, digits, tmp_path / "again.safetensors", 32, 60.0, 256)
    assert again.digest == found.digest
    other = gather(engine, digits, tmp_path / "other.safetensors", 32, 60.0, 224)
    assert other.digest != found.digest


def test_a_small_budget_means_fewer_samples_but_not_below_the_least(engine, digits, tmp_path):
    found = gather(engine, digits, tmp_path / "data.safetensors", 32, 1e-3, None)
    assert found.num_samples == 64


def test_samples_without_labels_are_what_predict_takes(engine, digits, tmp_path):
    path = tmp_path / "data.safetensors"
    pictures = [digits.image(at) for at in range(12)]
    found = gather(engine, pictures, path, 32, 60.0, None)
    assert (found.num_samples, found.has_labels) == (6, False)
    assert count_rows(path, "calibration") == 6
    assert count_rows(path, "targets") == 0
    batch, _ = digits.get_batch(list(range(12)), 0)
    tensor = gather(engine, batch["inputs"], tmp_path / "tensor.safetensors", 32, 60.0, None)
    assert tensor.digest == found.digest


def test_what_holds_no_samples_is_refused(engine, tmp_path):
    with pytest.raises(ConfigError, match="data is a dict, which holds no samples"):
        gather(engine, {}, tmp_path / "data.safetensors", 32, 60.0, None)
