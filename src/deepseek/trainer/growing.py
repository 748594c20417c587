"""Tables that grow in a run: what goes with them, and their state beside that of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.models.growing_table import growing_tables
from deepseek.parallel.world import World
from deepseek.trainer.precision import Precision


def check_growing(
    module: nn.Module, config: TrainerConfig, world: World, precision: Precision
) -> None:
    """Refuse settings that tables which grow would not follow.

    Raises:
        ConfigError: there are such tables, and such settings.
    """
    tables = growing_tables(module)
    if not tables:
        return
    problems = {
        f"parallel={world.plan.describe()}: every rank holds all of their rows, as in dp":
            world.size > world.plan.dp_replicate,
        "precision=fp16: their gradients would stay scaled": precision.needs_scaler,
        f"ema_decay={config.ema_decay}: the average would have none of their rows":
            bool(config.ema_decay),
    }  # fmt: skip
    for problem, is_set in problems.items():
        if is_set:
            raise ConfigError(
                f"tables that grow ({', '.join(list(tables)[:3])}) do not go with {problem}",
                fix="train in fp32 or bf16, without ema_decay, on one rank or on several of dp;"
                " or use a table of a fixed size",
            )


def table_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the content of the tables that grow, by name in the state of the module."""
    return {
        f"{name}.{key}": tensor
        for name, table in growing_tables(module).items()
        for key, tensor in table.state_dict().items()
    }


def load_tables(module: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Fill the tables that grow from the state of a module.

    Raises:
        CheckpointError: it holds other tables.
    """
    for name, table in growing_tables(module).items():
        prefix = f"{name}."
        keys = [key for key in stored if key.startswith(prefix)]
        table.load_state_dict({key.removeprefix(prefix): stored[key] for key in keys})


@contextmanager
def lent_tables(module: nn.Module, stored: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute with tables of another state for a while."""
    kept = table_tensors(module)
    try:
        load_tables(module, stored)
        yield
    finally:
        load_tables(module, kept)
