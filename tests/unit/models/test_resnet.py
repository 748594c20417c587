import os
from pathlib import Path

import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, ResNet

DATA = Path(os.environ.get("DEEPSEEK_TEST_DATA", "../shared/data"))


# He et al. 2015, table 6: 0.27, 0.46, 0.66 and 0.85 million parameters.
@pytest.mark.parametrize(
    ("num_layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)]
)
def test_depths_have_the_published_number_of_parameters(num_layers, millions):
    engine = ModelEngine(f"resnet{num_layers}", num_classes=10)
    assert round(engine.num_parameters / 1e6, 2) == millions
    linear_layers = [
        module
        for module in engine.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert len(linear_layers) == num_layers


def test_any_image_size_and_number_of_channels():
    model = ResNet(num_layers=8, channels=1, num_classes=3)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 3)
    assert model(torch.randn(2, 1, 45, 30)).shape == (2, 3)


def test_depth_that_is_not_6n_plus_2_is_refused():
    with pytest.raises(ConfigError, match=r"num_layers=18 is not 6n \+ 2"):
        ResNet(num_layers=18)


def test_published_weights_load_and_tell_cats_from_ships():
    found = sorted((DATA / "weights_resnet_cifar10").glob("resnet20-*.th"))
    if not found:
        pytest.skip(f"no weights of ResNet-20 in {DATA}")
    engine = ModelEngine("resnet20", weights=found[0], allow_pickle=True)
    assert engine.num_classes == 10
