import pytest

from deepseek.config import ConfigFileError, VolumeDataConfig, load_config
from deepseek.config.schema import dump_config, json_schema

VOLUMES = "data: {{format: volume, train: scans{}}}\nmodel: {{architecture: unet3d}}\n"


@pytest.fixture
def load(tmp_path):
    def read(text, overrides=()):
        (tmp_path / "a.yaml").write_text(text)
        return load_config(tmp_path / "a.yaml", overrides)

    return read


def test_the_format_brings_its_settings(load):
    config = load(VOLUMES.format(", foreground_share: 0.5"), ["data.patches_per_volume=4"])
    assert isinstance(config.data, VolumeDataConfig)
    assert (config.data.foreground_share, config.data.patches_per_volume) == (0.5, 4)
    assert load(dump_config(config)).data == config.data
    assert "VolumeDataConfig" in str(json_schema())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", foreground_shares: 1", "did you mean `foreground_share`?"),
        (", foreground_share: 2", "expected a number >= 0 and <= 1"),
        (", tokenizer: bpe", "it goes with `data.format: text`"),
        (", channels: 1", "it goes with `data.format: image`"),
        (", patches_per_volume: 0", "expected a whole number >= 1 (patches)"),
    ],
)
def test_problems_are_found_at_their_place(more, message, load):
    with pytest.raises(ConfigFileError) as caught:
        load(VOLUMES.format(more))
    assert message in str(caught.value)


def test_what_belongs_to_volumes_is_said(load):
    with pytest.raises(ConfigFileError, match=r"it goes with `data\.format: volume`"):
        load("data: {train: a, foreground_share: 1}\nmodel: {architecture: vit}\n")
    with pytest.raises(ConfigFileError, match="did you mean `volume`"):
        load(VOLUMES.format("").replace("volume", "volum"))
