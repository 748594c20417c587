"""Models that torch.export cannot follow, or follows wrongly."""

import pytest
import torch
from tests.unit.models.test_contract import make_engine, make_spec
from torch import nn

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.deploy.artefact import convert
from deepseek.deploy.runtimes.program import open_dims, trace
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine

SPEC = DataSpec("regression", {"inputs": FieldSpec((3,), "float32")})


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
        (Wide(), ConfigError, r"holds .*scale in float64"),
        (Drifting(), CheckpointError, r"inputs of shape \(4, 3\) it computes numbers that differ"),
    ],
)
def test_an_export_that_is_not_the_model_leaves_no_file(module, error, message, tmp_path):
    engine = ModelEngine.wrap(module, SPEC)
    with pytest.raises(error, match=message):
        convert(engine, tmp_path / "model.pt2", torch.ones(4, 3), "exported")
    assert not list(tmp_path.iterdir())


def test_the_batch_stays_open_and_the_length_of_text():
    for name, dims in {"vit": ("batch",), "gpt": ("batch", "length")}.items():
        engine = make_engine(name).eval()
        engine.bind(make_spec(name))
        assert open_dims(engine) == dims
        shape = trace(engine, random_inputs(engine, 4)).graph_signature.user_inputs
        assert len(shape) == 1


def test_a_model_without_a_head_is_refused(tmp_path):
    engine = make_engine("gpt", num_classes=None)
    engine.spec = make_spec("gpt")
    with pytest.raises(ConfigError, match="num_classes=None"):
        convert(engine, tmp_path / "m.pt2", torch.ones(2, 8, dtype=torch.long), "exported")
