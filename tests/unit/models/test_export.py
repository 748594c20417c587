"""A program of torch.export computes what the model does, whatever the batch size."""

import pytest
import torch
from tests.unit.models.test_contract import make_engine, make_inputs
from torch import nn

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine

QUICK = ["gpt", "llama", "resnet"]


@pytest.mark.parametrize("name", QUICK)
def test_a_file_gives_the_numbers_of_the_model_at_other_batch_sizes(name, tmp_path):
    engine = make_engine(name).train()
    error = engine.export(tmp_path / "model.pt2", make_inputs(name, 1))
    assert error < 1e-4
    assert engine.training
    program = torch.export.load(tmp_path / "model.pt2")
    engine.eval()
    for batch_size in (1, 2, 7):
        inputs = make_inputs(name, batch_size)
        found = program.module()(inputs)
        torch.testing.assert_close(found, engine(inputs), atol=1e-5, rtol=1e-4)
    assert {tensor.dtype for tensor in program.state_dict.values()} <= {torch.float32, torch.int64}
    assert not list(tmp_path.glob(".*"))


def test_uint8_images_are_normalised_inside(tmp_path):
    engine = make_engine("resnet").eval()
    spec = DataSpec(
        "classification", {"inputs": FieldSpec((3, 16, 16), "uint8")}, tuple("abcde"), (1,) * 5,
        "resize_16", IMAGENET,
    )  # fmt: skip
    engine.bind(spec)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    engine.export(tmp_path / "model.pt2", images[:2])
    found = torch.export.load(tmp_path / "model.pt2").module()(images)
    torch.testing.assert_close(found, engine(images), atol=1e-5, rtol=1e-4)


class Peeking(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = torch.tensor([0.1], dtype=torch.float64)

    def forward(self, x):
        return self.linear(x) * self.scale.float()


class Drifting(nn.Module):
    """Traced for export it computes something else, as an export gone wrong does."""

    def forward(self, x):
        return x + 1 if torch.compiler.is_exporting() else x


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Peeking(), ConfigError, "cannot be exported for any batch size"),
        (Wide(), CheckpointError, r"holds .*scale in float64"),
        (Drifting(), CheckpointError, "for 1 samples, numbers that differ by"),
    ],
)
def test_an_export_that_is_not_the_model_leaves_no_file(module, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ModelEngine.wrap(module).export(tmp_path / "model.pt2", torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_head_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_classes=None"):
        make_engine("gpt", num_classes=None).export(tmp_path / "m.pt2", make_inputs("gpt"))
