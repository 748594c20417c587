import pytest

from deepseek.cli.init import TEMPLATES, filled_template
from deepseek.config import load_config
from deepseek.errors import ConfigError


@pytest.mark.parametrize("folder", ["photos", "my photos", "1e3", "yes: no #1", "été"])
def test_templates_are_valid_whatever_the_folder_is_called(tmp_path, folder):
    data = tmp_path / folder
    data.mkdir()
    for template in TEMPLATES:
        file = tmp_path / f"{template}.yaml"
        file.write_text(
            filled_template(template, None if template == "digits" else data, file), "utf-8"
        )
        config = load_config(file)
        assert config.data.train == ("digits" if template == "digits" else str(data))
        assert file.read_text("utf-8").startswith("# yaml-language-server: $schema=")


def test_data_that_is_missing_or_ignored_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="needs --data"):
        filled_template("images", None, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="would be ignored"):
        filled_template("digits", tmp_path, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="is not a folder"):
        filled_template("images", tmp_path / "no", tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="is not a file"):
        filled_template("text", tmp_path / "no", tmp_path / "a.yaml")


def test_a_file_of_text_is_data_for_text(tmp_path):
    data = tmp_path / "verses.txt"
    data.write_text("the cat sat")
    text = filled_template("text", data, tmp_path / "a.yaml")
    assert f"train: {data}" in text
    with pytest.raises(ConfigError, match="is not a folder"):
        filled_template("images", data, tmp_path / "a.yaml")
