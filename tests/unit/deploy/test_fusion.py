import pytest
import timm
import torch
from torch import nn

from deepseek.deploy.fusion import fuse
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine


def trained(module):
    """Give norms statistics and weights that are not the first ones."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return module.eval()


def num_norms(module):
    return sum(
        isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for m in module.modules()
    )


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: ModelEngine("resnet20", num_classes=10).module, 32),
        (lambda: timm.create_model("resnet18", num_classes=7), 64),
        (lambda: timm.create_model("efficientnet_b0", num_classes=7), 64),
        (lambda: timm.create_model("mobilenetv3_small_100", num_classes=7), 64),
    ],
    ids=["resnet20", "resnet18", "efficientnet", "mobilenet"],
)
def test_every_norm_behind_a_convolution_is_folded_and_the_outputs_stay(make, size):
    module = trained(make())
    inputs = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        expected = module(inputs)
    found = fuse(module, inputs)
    assert len(found.folded) == num_norms(module) > 10
    assert num_norms(found.model) == 0
    assert found.kept == ()
    with torch.inference_mode():
        assert torch.allclose(found.model(inputs), expected, atol=1e-3)
        assert torch.equal(module(inputs), expected)  # left as it was


def test_linears_and_other_dims_are_folded_too():
    for make, shape in (
        (lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), (4, 8)),
        (lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6)), (4, 2, 9)),
        (lambda: nn.Sequential(nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6)), (2, 1, 5, 5, 5)),
    ):
        assert fuse(trained(make()), torch.randn(shape)).folded == (("0", "1"),)


class Branches(nn.Module):
    """The output of the convolution is read twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class Shared(nn.Module):
    """One convolution, used twice, before different norms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x))))


@pytest.mark.parametrize("make", [Branches, Shared])
def test_what_is_read_elsewhere_is_kept_with_the_reason(make):
    found = fuse(trained(make()), torch.randn(2, 3, 8, 8))
    assert found.folded == ()
    assert all(why == "no convolution or linear alone before it" for _, why in found.kept)
    assert found.difference == 0
    assert "kept: " in found.describe()


def test_a_norm_of_another_class_is_kept():
    class OwnNorm(nn.BatchNorm2d):
        pass

    found = fuse(trained(nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4))), torch.randn(2, 3, 8, 8))
    assert found.kept == (("1", "a OwnNorm may do more than a norm"),)


def test_attention_of_timm_and_transformers_is_switched_to_the_fused_kernel():
    transformers = pytest.importorskip("transformers")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    for block in vit.blocks:
        block.attn.fused_attn = False
    found = fuse(vit, torch.randn(2, 3, 32, 32))
    assert len(found.attentions) == 12
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=50, attn_implementation="eager",
    )  # fmt: skip
    bert = transformers.BertModel(config).eval()
    found = fuse(bert, torch.randint(0, 50, (2, 7)))
    assert found.attentions == ("BertModel",)
    assert found.difference < 1e-5


def test_an_engine_brings_its_own_inputs():
    from deepseek.datasets import ImageDataset

    engine = ModelEngine("resnet20", channels=1)
    engine.bind(ImageDataset("digits", transform="resize_8", channels=1).spec)
    assert fuse(engine).folded
    with pytest.raises(ConfigError, match="nothing is known of the inputs"):
        fuse(engine.module)


def test_a_model_that_cannot_be_recorded_is_refused():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) if float(x.sum()) > 0 else x

    with pytest.raises(ConfigError, match="cannot be recorded"):
        fuse(Hidden(), torch.randn(2, 4))
