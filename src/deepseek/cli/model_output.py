"""Where a command may write what it makes, said before the work and not after it."""

from pathlib import Path

from deepseek.errors import ConfigError


def check_output_file(output: Path) -> None:
    """Say before the work what would fail after it.

    Raises:
        ConfigError: the folder of the file is missing, or there is a folder of its name.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is not a folder", fix=f"mkdir -p {output.parent}")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder", fix="name a file in it")


def check_model_output(model: Path, output: Path) -> None:
    """Say before the work what would fail after it.

    Raises:
        ConfigError: as above, or the name is not that of a model file, or it is the file that the
            new one is made of.
    """
    if output.suffix != ".bin":
        raise ConfigError(f"{output} does not end with .bin", fix="a model file is called NAME.bin")
    check_output_file(output)
    if output.exists() and model.exists() and output.samefile(model):
        raise ConfigError(f"{output} would replace the model it is made of", fix="choose a name")
