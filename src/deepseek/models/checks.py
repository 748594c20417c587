"""Rules that the arguments of more than one model obey, and the errors that say so."""

from collections.abc import Collection, Sequence

from deepseek.errors import ConfigError


def check_positive(**sizes: int) -> None:
    """Raise `ConfigError` unless every size is a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"{name}={size!r} is not a positive integer", fix=f"give {name} of 1 or more"
            )


def check_share(**shares: float) -> None:
    """Raise `ConfigError` unless every share is in 0 <= share < 1."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ConfigError(f"{name}={share} is not in 0 <= {name} < 1", fix=f"change {name}")


def check_choice(**choices: tuple[str, Collection[str]]) -> None:
    """Raise `ConfigError` unless every value, the first of a pair, is among the second."""
    for name, (value, known) in choices.items():
        if value not in known:
            names = " or ".join(f'{name}="{each}"' for each in known)
            raise ConfigError(f"{name}={value!r} is not known", fix=f"give {names}")


def check_fits(num_tokens: int, context_length: int) -> None:
    """Raise `ConfigError` if there are more tokens than a model sees."""
    if num_tokens > context_length:
        raise ConfigError(
            f"{num_tokens} tokens do not fit a model with context_length={context_length}",
            fix="cut the sequences, or build the model with a longer context",
        )


def check_input(architecture: str, takes: Sequence[int | None], shape: Sequence[int]) -> None:
    """Raise `ConfigError` unless a model takes inputs of a shape.

    Args:
        architecture: of the model.
        takes: the shape that it takes, `None` for any size; empty: any.
        shape: of one sample.
    """
    fits = not takes or (
        len(shape) == len(takes)
        and all(want is None or want == size for want, size in zip(takes, shape, strict=True))
    )
    if not fits:
        what, axes = {
            1: ("inputs", " (tokens)"),
            4: ("volumes", " (channels x depth x height x width)"),
        }.get(len(takes), ("images", " (channels x height x width)"))
        raise ConfigError(
            f"the data has {what} {_shown(shape)}{axes}, {architecture!r} takes {_shown(takes)}",
            fix="change the transform of the data, or image_size and channels of the model",
        )


def _shown(shape: Sequence[int | None]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)


def missing_head(model: str) -> ConfigError:
    """Return the error of a forward pass through a model that does not know its classes."""
    return ConfigError(
        f"{model} has num_classes=None, so it has no head to compute logits with",
        fix="give num_classes, or let Trainer learn it from the data set",
    )
