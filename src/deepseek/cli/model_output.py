"""Where a command may write the model that it makes of another one."""

from pathlib import Path

from deepseek.errors import ConfigError


def check_model_output(model: Path, output: Path) -> None:
    """Say before the work what would fail after it.

    Raises:
        ConfigError: the name is not that of a model file, its folder is missing, or it is the file
            that the new one is made of.
    """
    if output.suffix != ".bin":
        raise ConfigError(f"{output} does not end with .bin", fix="a model file is called NAME.bin")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is not a folder", fix=f"mkdir -p {output.parent}")
    if output.exists() and model.exists() and output.samefile(model):
        raise ConfigError(f"{output} would replace the model it is made of", fix="choose a name")
