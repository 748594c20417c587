"""`deepseek train --dry-run`: one step of a run on paper, as one rank of any number."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.config import RunConfig


def print_dry_run(config: "RunConfig", world_size: int, rank: int) -> None:
    """Walk a step of `config` and print what it needs.

    Raises:
        ConfigError: the plan cannot work; or the data say less of a sample than a step must know.
    """
    from deepseek.cli.build_run import build_trainer
    from deepseek.trainer.dry_run import dry_run
    from deepseek.trainer.dry_run_report import describe_dry_run

    found = dry_run(
        lambda: build_trainer(config, run_dir=None, resume=None, on_paper=True),
        world_size=world_size,
        rank=rank,
    )
    print("\n".join(describe_dry_run(found)))
