import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.models import SlidingWindow, UNet3D


def volume(*sizes, channels=1, count=1):
    torch.manual_seed(0)
    return torch.randn(count, channels, *sizes)


class Counting(nn.Module):
    """A module for each voxel on its own, and how often it was called."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv3d(channels, 3, 1)
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.conv(x)


@pytest.mark.parametrize("sizes", [(16, 16, 16), (17, 23, 9), (5, 30, 8), (3, 2, 7)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_a_module_of_single_voxels_gives_what_it_gives_to_the_whole(sizes, overlap):
    model, x = Counting(2), volume(*sizes, channels=2, count=2)
    found = SlidingWindow(model, (8, 8, 8), overlap=overlap)(x)
    torch.testing.assert_close(found, model.conv(x), atol=1e-5, rtol=1e-5)
    assert {shape[2:] for shape in model.shapes} == {(8, 8, 8)}


def test_a_window_of_the_size_of_the_volume_is_the_whole_forward():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=2, features=(4, 8)).eval(), volume(8, 12, 16)
    found = SlidingWindow(model, (8, 12, 16))(x)
    torch.testing.assert_close(found, model(x).detach())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("sizes", [(20, 24, 16), (17, 31, 19), (12, 30, 7)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_results_are_monai_s(sizes, overlap):
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=3, features=(4, 8)).eval(), volume(*sizes, count=2)
    window = (12, 16, 8)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(x, window, 3, model, overlap, "gaussian")
    found = SlidingWindow(model, window, overlap=overlap, batch_size=3)(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_windows_without_anything_to_look_for_are_not_computed():
    model, x = Counting(), volume(12, 64, 64, count=2)
    masks = torch.zeros(2, 12, 64, 64, dtype=torch.bool)
    masks[0, 3:5, 10, 10] = masks[0, 6, 60, 60] = True
    told = []
    sliding = SlidingWindow(model, (8, 16, 16), overlap=0, batch_size=2)
    found = sliding(x, masks, fill=-7.0, on_windows=lambda done, total: told.append((done, total)))
    assert told == [(2, 2)]
    expected = model.conv(x)
    torch.testing.assert_close(found[0][:, masks[0]], expected[0][:, masks[0]])
    assert (found[1] == -7).all()  # of the second volume nothing
    assert (found[0, :, :, 30:40] == -7).all()


def test_no_window_at_all_still_tells_the_outputs():
    found = SlidingWindow(Counting(), (4, 4, 4))(
        volume(6, 6, 6), torch.zeros(1, 6, 6, 6, dtype=torch.bool), fill=1.0
    )
    assert found.shape == (1, 3, 6, 6, 6)
    assert (found == 1).all()


def test_a_full_mask_changes_nothing():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=2, features=(4, 8)).eval(), volume(10, 20, 11)
    sliding = SlidingWindow(model, (8, 8, 8))
    torch.testing.assert_close(sliding(x, torch.ones(1, 10, 20, 11, dtype=torch.bool)), sliding(x))


def test_what_is_finished_is_what_is_finished_afterwards():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=3, features=(4, 8)).eval(), volume(29, 12, 11, count=2)
    sliding = SlidingWindow(model, (8, 8, 8))
    slices = []

    def finish(logits):
        slices.append(logits.shape[1])
        return logits.argmax(0).to(torch.uint8)

    labels = sliding(x, finish=finish)
    assert (labels.shape, labels.dtype) == ((2, 29, 12, 11), torch.uint8)
    assert torch.equal(labels, sliding(x).argmax(1).to(torch.uint8))
    assert max(slices) == 8  # never more slices in memory than a window has


def test_flips_are_a_mean_over_all_ways_to_mirror():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=2, features=(4, 8)).eval(), volume(8, 8, 8)
    with torch.no_grad():
        ways = [[], [2], [4], [2, 4]]
        expected = torch.stack([model(x.flip(way)).flip(way) for way in ways]).mean(0)
    found = SlidingWindow(model, (8, 8, 8), flips=(0, 2))(x)
    torch.testing.assert_close(found, expected)


def test_half_precision_computes_and_sums_in_16_bits():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=2, features=(4, 8)).eval(), volume(8, 12, 20)
    expected = SlidingWindow(model, (8, 8, 8))(x)
    half = SlidingWindow(
        model, (8, 8, 8), compute_dtype=torch.bfloat16, sum_dtype=torch.float16, store="cpu"
    )(x)
    assert half.dtype == torch.float16
    assert 0 < (half.float() - expected).abs().max() < 0.1


@pytest.mark.long
def test_a_compiled_module_is_given_batches_of_one_shape():
    torch.manual_seed(0)
    model, x = UNet3D(num_classes=2, features=(4, 8)).eval(), volume(8, 8, 20)
    expected = SlidingWindow(model, (8, 8, 8))(x)
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = SlidingWindow(model, (8, 8, 8), batch_size=2, compiles=True)(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_pictures_have_windows_as_well():
    model = nn.Conv2d(1, 2, 1)
    x = volume(13, 22)
    found = SlidingWindow(model, (8, 8))(x)
    torch.testing.assert_close(found, model(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (9, 20, 30), (4, 4, 4)])
def test_calls_are_counted_beforehand(sizes):
    model = Counting()
    sliding = SlidingWindow(model, (8, 8, 8), batch_size=3, flips=(0,))
    sliding(volume(*sizes))
    assert len(model.shapes) == sliding.count_batches(sizes)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(
        ConfigError, match=r"window=\[0, 4\].*overlap=1 .*batch_size=0.*flips=\[2\]"
    ):
        SlidingWindow(Counting(), (0, 4), overlap=1, batch_size=0, flips=[2])


def test_shapes_that_do_not_fit_are_named():
    sliding = SlidingWindow(nn.Conv3d(1, 2, 3, stride=2, padding=1), (4, 4, 4))
    with pytest.raises(ConfigError, match=r"shape \[1, 1, 4, 4\], the window \[4, 4, 4\]"):
        sliding(volume(4, 4))
    with pytest.raises(ConfigError, match=r"masks are torch.bool \[1, 4\]"):
        sliding(volume(4, 4, 4), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"outputs of \[1, 2, 2, 2, 2\]"):
        sliding(volume(4, 4, 4))
