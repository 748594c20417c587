import pytest
import torch

from deepseek.models import ModelEngine
from deepseek.trainer import evaluation
from deepseek.trainer.memory_format import put_in_order

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def orders(engine):
    return {w.is_contiguous() for w in engine.parameters() if w.ndim == 4 and w.shape[1] > 1}


@pytest.mark.parametrize(
    ("name", "settings", "device", "is_turned"),
    [
        ("resnet20", {}, CUDA, True),
        ("resnet20", {}, CPU, False),
        (
            "vit",
            {"image_size": 32, "patch_size": 8, "num_layers": 1, "dim": 16, "heads": 2},
            CUDA,
            False,
        ),
    ],
)
def test_a_model_of_convolutions_is_put_in_order_on_a_gpu(name, settings, device, is_turned):
    engine = ModelEngine(name, num_classes=3, **settings)
    before = {key: value.clone() for key, value in engine.state_dict().items()}
    assert put_in_order(engine, device) is is_turned
    assert (False in orders(engine)) is is_turned
    assert all(torch.equal(before[key], value) for key, value in engine.state_dict().items())


def test_quantised_layers_stay_as_they_are():
    engine = ModelEngine("resnet20", num_classes=3)
    engine.changes = ({"kind": "quantised", "layers": {}},)
    assert not put_in_order(engine, CUDA)


def test_an_evaluation_has_pictures_in_the_order_of_the_model(monkeypatch):
    seen = []

    class Looking(torch.nn.Conv2d):
        def forward(self, input):
            seen.append(input.is_contiguous(memory_format=torch.channels_last))
            return super().forward(input)

    def as_on_a_gpu(engine, device):
        return put_in_order(engine, CUDA)

    data = torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8), torch.arange(4) % 2)
    module = torch.nn.Sequential(
        Looking(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    settings = {"device": "cpu", "num_workers": 0, "precision": "fp32"}
    engine = ModelEngine.wrap(module)
    on_cpu = evaluation.evaluate_model(engine, data, 2, **settings)
    assert seen == [False, False]
    monkeypatch.setattr(evaluation, "put_in_order", as_on_a_gpu)
    assert evaluation.evaluate_model(engine, data, 2, **settings) == pytest.approx(on_cpu)
    assert seen[2:] == [True, True]
