"""The whole log again, from the first model: what the service must have come to."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from deepseek.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from deepseek.errors import CheckpointError, ConfigError
from deepseek.recsys.online.event_log import open_log
from deepseek.recsys.online.learner import Cuts, Learner, weights_hash
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.settings import OnlineSettings


@dataclass(frozen=True)
class Replay:
    """What a replay came to.

    Attributes:
        offset: events learnt.
        num_updates: of the model.
        weights: their hash.
        at_checkpoint: offset of the newest checkpoint; `None`: there is none.
        is_equal: whether weights there are the same to the bit.
    """

    offset: int
    num_updates: int
    weights: str
    at_checkpoint: int | None = None
    is_equal: bool | None = None


def replay(settings: OnlineSettings, output: Path | None = None) -> Replay:
    """Learn the log from its beginning.

    Args:
        settings: of the service.
        output: model file to write what was learnt to.

    Raises:
        ConfigError: the beginning of the log was forgotten.
        CheckpointError: there are checkpoints, and none is whole.
    """
    torch.set_num_threads(1)
    log = open_log(settings, writes=False)
    try:
        if log.span()[0] > 0:
            raise ConfigError(
                f"the log begins at offset {log.span()[0]}: older events were forgotten",
                fix="raise log.retention",
            )
        learner = Learner(OnlineModel.load(settings.model), settings)
        checkpoint = _newest_checkpoint(settings.path / "checkpoints")
        is_equal = None
        for cut in Cuts(log, 0, settings.learner.cut_events):
            learner.learn(cut)
            if checkpoint is not None and learner.offset == checkpoint.step:
                own = learner.checkpoint()
                is_equal = all(
                    weights_hash(dict(checkpoint.tensors[group])) == weights_hash(dict(tensors))
                    for group, tensors in own.tensors.items()
                )
        if checkpoint is not None and checkpoint.step > 0 and is_equal is None:
            is_equal = False
    finally:
        log.close()
    if output is not None:
        learner.model.engine.save(output)
    weights = weights_hash(learner.model.engine.module.state_dict())
    at = None if checkpoint is None else checkpoint.step
    return Replay(learner.offset, learner.num_updates, weights, at, is_equal)


def _newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint; nothing is tidied up, for a learner may be saving one."""
    steps = CheckpointStore(folder).steps()
    for path in steps:
        with suppress(CheckpointError, FileNotFoundError):  # it may be deleted meanwhile
            return load_checkpoint(path)
    if steps:
        raise CheckpointError(
            f"{folder} holds no whole checkpoint", fix="end the service, and replay again"
        )
    return None
