import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.models import UNet3D


def make_unet(**args):
    torch.manual_seed(0)
    return UNet3D(
        **{"channels": 2, "num_classes": 3, "features": (4, 6, 8, 10), "blocks": 1, **args}
    )


def test_every_voxel_has_logits_and_levels_have_their_own_strides_and_kernels():
    model = make_unet(
        strides=((1, 2, 2), (2, 2, 2), (1, 2, 2)), kernels=((1, 3, 3), *[(3, 3, 3)] * 3)
    )
    assert model(torch.randn(2, 2, 6, 16, 24)).shape == (2, 3, 6, 16, 24)
    assert model.encoder[0][0].conv1.kernel_size == (1, 3, 3)
    features = torch.randn(1, 2, 6, 16, 24)
    sizes = []
    for level in model.encoder:
        features = level(features)
        sizes.append(tuple(features.shape[1:]))
    assert sizes == [(4, 6, 16, 24), (6, 6, 8, 12), (8, 3, 4, 6), (10, 3, 2, 3)]


def test_deep_supervision_gives_finest_first_in_training_and_the_finest_alone_after():
    model, volumes = make_unet(deep_supervision=True), torch.randn(2, 2, 16, 16, 16)
    outputs = model.train()(volumes)
    assert [tuple(each.shape) for each in outputs] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8)]
    sum(each.square().mean() for each in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model.eval()(volumes), outputs[0])


def test_without_deep_supervision_there_is_one_output():
    outputs = make_unet().train()(torch.randn(1, 2, 8, 8, 16))
    assert outputs.shape == (1, 3, 8, 8, 16)


def test_two_levels_have_nothing_to_supervise_below():
    model = make_unet(features=(4, 6), deep_supervision=True).train()
    assert len(model(torch.randn(1, 2, 4, 4, 4))) == 1


def test_brightness_and_contrast_of_a_volume_change_little():
    """Instance norms: nothing depends on the scale of the first features."""
    model, volumes = make_unet().eval(), torch.randn(1, 2, 8, 16, 16)
    with torch.no_grad():
        want, found = model(volumes), model(volumes * 10)
    assert (found - want).norm() < 1e-3 * want.norm()


def test_volumes_that_strides_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="H=12 voxels are no multiple of 8"):
        make_unet()(torch.randn(1, 2, 8, 12, 8))
    with pytest.raises(ConfigError, match="8 x 8 x 8 is one voxel in the lowest level"):
        make_unet()(torch.randn(1, 2, 8, 8, 8))
