"""Real weights on real pictures, and the kernels that a compiler finds."""

import os
from pathlib import Path

import pytest
import torch

from deepseek.datasets import ImageDataset
from deepseek.deploy import Calibration, quantize
from deepseek.deploy.runtimes.integer_kernels import register_integer_kernels
from deepseek.models import Encoder, ModelEngine, ResNet

DATA = Path(os.environ.get("DEEPSEEK_TEST_DATA", "no data"))


def load_cifar(name):
    weights = sorted((DATA / "weights_resnet_cifar10").glob(f"{name}-*.th"))
    table = DATA / "cifar10" / "test-00000-of-00001.parquet"
    if not weights or not table.is_file():
        pytest.skip(f"no weights of {name} or no CIFAR-10 in {DATA}")
    test = ImageDataset(str(table), transform="none")
    engine = ModelEngine(name, weights=weights[0], allow_pickle=True)
    engine.bind(test.spec)
    return engine.eval(), test


def test_integers_cost_little_accuracy_on_real_pictures():
    engine, test = load_cifar("resnet20")
    others, some = test.split(0.05)
    calibration = Calibration(others, num_samples=128)
    done = quantize(engine, "int8_static", some, calibration=calibration, batch_size=125)
    assert abs(done.before - 0.9173) < 0.04  # three standard errors of 500 pictures
    assert done.drop <= 0.011  # five of them; what all 10,000 lose is in the documentation
    assert done.bytes_after < 0.27 * done.bytes_before


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "scheme", "accuracy", "points"),
    [
        ("resnet20", "int8_static", 0.9173, 0.3),
        ("resnet20", "bf16", 0.9173, 0.1),
        ("resnet56", "int8_static", 0.9339, 0.3),
        ("resnet56", "bf16", 0.9339, 0.1),
    ],
)
def test_accuracy_on_all_pictures(name, scheme, accuracy, points):
    engine, test = load_cifar(name)
    train = ImageDataset(str(DATA / "cifar10" / "train-00000-of-00002.parquet"), transform="none")
    done = quantize(engine, scheme, test, calibration=Calibration(train), batch_size=250)
    assert done.before == pytest.approx(accuracy, abs=1e-4)
    assert done.drop <= points / 100


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheme", "kernel"),
    [("int8_static", "qconv_pointwise"), ("int8_static", "qlinear_pointwise"),
     ("int8_dynamic", "qlinear_pointwise")],
)  # fmt: skip
def test_a_compiler_finds_the_integer_kernels(scheme, kernel):
    if not register_integer_kernels():
        pytest.skip("no x86 chip, or no torchao")
    torch.manual_seed(0)
    if kernel == "qconv_pointwise":
        model, inputs = ResNet(num_layers=8, num_classes=10), torch.randn(16, 3, 16, 16)
    else:
        model = Encoder(
            vocab_size=40, context_length=8, num_layers=1, dim=32, heads=2, num_classes=3
        )
        inputs = torch.randint(1, 40, (16, 8))
    done = quantize(model.eval(), scheme, inputs).model
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        want = done(inputs)
        compiled = torch.compile(done.module, dynamic=False)
        found, code = torch._inductor.utils.run_and_get_code(compiled, inputs)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    assert kernel in "".join(code)
