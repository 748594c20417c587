import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
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


def test_published_weights_have_their_published_accuracy_on_real_images():
    weights = sorted((DATA / "weights_resnet_cifar10").glob("resnet20-*.th"))
    tables = sorted((DATA / "cifar10").glob("*test*.parquet"))
    if not weights or not tables:
        pytest.skip(f"no weights of ResNet-20 or no CIFAR-10 in {DATA}")
    engine = ModelEngine("resnet20", weights=weights[0], allow_pickle=True)
    names = tuple(map(str, range(10)))
    fields = {"inputs": FieldSpec((3, 32, 32), "uint8")}
    engine.bind(DataSpec("classification", fields, names, (1,) * 10, "none", IMAGENET))
    rows = pq.ParquetFile(tables[0]).read_row_group(0).slice(0, 1000).to_pydict()
    images = [Image.open(io.BytesIO(image["bytes"])) for image in rows["image"]]
    found = [prediction.index for prediction in engine.predict(images, batch_size=250)]
    correct = sum(map(int.__eq__, found, rows["label"])) / len(found)
    # 91.73 % of all 10,000 (the weights' README); three standard errors of 1,000 are 2.6 %.
    assert abs(correct - 0.9173) < 0.026
