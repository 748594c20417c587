"""What torch says when a step of a model cannot be computed, in the words of the settings."""

from deepseek.errors import ConfigError
from deepseek.parallel.world import World

_ONE_VALUE = "Expected more than 1 value per channel when training"
_NOT_REDUCED = "Expected to have finished reduction in the prior iteration"


def explain_step(error: Exception, world: World, num_samples: int) -> Exception:
    """Return the error to raise in place of torch's; that itself where there is no better one.

    Args:
        error: of a forward or backward pass.
        world: the ranks.
        num_samples: of this rank, in the batch.
    """
    text = str(error)
    if isinstance(error, ValueError) and _ONE_VALUE in text:
        who = f"rank {world.rank} has {num_samples}" if world.is_distributed else f"{num_samples}"
        return ConfigError(
            f"{who} sample{'s' * (num_samples != 1)} of a batch, and a batch norm needs two in each"
            " micro-batch",
            fix="set drop_last=True in the DataLoader, or a batch_size that leaves no single"
            " sample over",
        )
    if isinstance(error, RuntimeError) and _NOT_REDUCED in text:
        return ConfigError(
            "some weights got no gradient in a step, and the other ranks wait for it",
            fix="set trainer.parallel.unused_parameters=true",
        )
    return error
