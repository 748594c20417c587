import numpy as np
import pytest

from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import ConfigError


def test_a_transform_says_what_it_does_and_what_is_left_in_evaluation():
    text = "spacing_1x1x2.5 + window_-1000_400 + patch_32x32x16 + flip_hw + rotate_15 + noise_0.1"
    transform = parse_volume_transform(text)
    assert transform.text == text.replace(" ", "")
    assert transform.evaluation == "spacing_1x1x2.5+window_-1000_400"
    assert transform.spacing_mm == (1.0, 1.0, 2.5)
    assert transform.patch == (32, 32, 16)
    assert transform.flip_axes == (1, 2)
    assert transform.amounts["rotate"] == 15
    assert transform.amounts["gamma"] == 0
    assert parse_volume_transform(transform.evaluation).evaluation == transform.evaluation
    assert parse_volume_transform("flip").flip_axes == (0, 1, 2)
    assert parse_volume_transform("none").orientation == "SPL"
    assert parse_volume_transform("orient_RAS").orientation == "RAS"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spacing_1x1", "'spacing_1x1' is not written as spacing_DxHxW"),
        ("zscor+patch_8x8x8", "unknown step 'zscor', did you mean \"zscore\"?"),
        ("rotate_200", "200 in 'rotate_200' is not in 0..180"),
        ("noise_0.1_1.5", "1.5 in 'noise_0.1_1.5' is not in 0..1"),
        ("patch_8x8x0", "0 in 'patch_8x8x0' is not in 1..4096"),
        ("zscore+zscore", "zscore is there twice"),
        ("window_400_-1000", "window has LOW >= HIGH"),
        ("orient_SSL", "orientation='SSL' does not name three axes"),
        ("spacing_1x1x0+flap", "0 in 'spacing_1x1x0' is not in 0.001..1000; unknown step 'flap'"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_volume_transform(text)
    assert message in str(caught.value)


def test_intensities():
    hounsfield = np.array([-2000, -1000, -300, 400, 3000], np.int16).reshape(1, 1, 1, 5)
    windowed = parse_volume_transform("window_-1000_400").scale_intensity(hounsfield)
    np.testing.assert_allclose(windowed.ravel(), [0, 0, 0.5, 1, 1])
    both = np.random.default_rng(0).normal(50, 7, (2, 4, 5, 6)) * [[[[1]]], [[[9]]]]
    scored = parse_volume_transform("zscore").scale_intensity(both)
    np.testing.assert_allclose(scored.mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(scored.std((1, 2, 3)), 1, atol=1e-5)
    assert scored.dtype == np.float32
