import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from deepseek.datasets import Normalization
from deepseek.errors import ConfigError

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def reference(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(NORMALIZATION.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(NORMALIZATION.std, dtype=torch.float64).view(3, 1, 1)
    return (images.double() / 255 - mean) / std


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 5, 7)])
def test_equals_the_formula(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    torch.testing.assert_close(
        NORMALIZATION.apply(images), reference(images).float(), rtol=0, atol=2e-6
    )


def test_float_images_in_0_to_1_give_the_same():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    torch.testing.assert_close(
        NORMALIZATION.apply(images.float() / 255), NORMALIZATION.apply(images)
    )


def test_half_precision_is_rounded_once():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    expected = NORMALIZATION.apply(images).to(torch.bfloat16)
    assert torch.equal(NORMALIZATION.apply(images, torch.bfloat16), expected)


def test_memory_format_is_kept():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert NORMALIZATION.apply(images).is_contiguous()
    assert NORMALIZATION.apply(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_constants_made_in_inference_mode_serve_training():
    normalization = Normalization((0.3,), (0.7,))
    with torch.inference_mode():
        normalization.apply(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    images = torch.rand(1, 1, 2, 2, requires_grad=True)
    normalization.apply(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full((1, 1, 2, 2), 1 / 0.7))


def test_a_step_on_paper_leaves_nothing_behind_for_real_pictures():
    normalization = Normalization((0.25,), (0.5,))  # of this test alone: constants are remembered
    with FakeTensorMode():
        fake = normalization.apply(torch.zeros(1, 1, 2, 2))
    assert isinstance(fake, FakeTensor)
    real = normalization.apply(torch.full((1, 1, 2, 2), 0.75))
    assert not isinstance(real, FakeTensor)
    assert real.tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_exports_as_a_graph():
    class Model(torch.nn.Module):
        def forward(self, images):
            return NORMALIZATION.apply(images)

    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    exported = torch.export.export(Model(), (images,)).module()
    torch.testing.assert_close(exported(images), NORMALIZATION.apply(images))


def test_wrong_channels_are_named():
    with pytest.raises(ConfigError, match=r"\(2, 1, 4, 4\) do not have channels=3"):
        NORMALIZATION.apply(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))]
)
def test_bad_values(mean, std):
    with pytest.raises(ConfigError):
        Normalization(mean, std)
