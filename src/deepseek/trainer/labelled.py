"""Masked language modelling: logits where there is a label, and nowhere else.

Devlin et al. 2018 (arXiv 1810.04805) hide 15 % of the tokens; at the others the logits of a whole
vocabulary would be computed, and gradients of zeros taken through them, for nothing.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from deepseek.datasets.token_masking import SHARE
from deepseek.models import Encoder, ModelEngine
from deepseek.parallel.plan import Plan
from deepseek.trainer.task import IGNORE_INDEX, LanguageModellingTask, Task

POSITIONS = "positions"
"""Field of a micro-batch: where its labels are."""


def counts_labels_alone(engine: ModelEngine, task: Task, plan: Plan, is_static: bool) -> bool:
    """Return whether the logits at tokens without a label may be left out.

    Args:
        engine: its model must be an `Encoder` that gives tokens of its vocabulary.
        task: the library's own, which ignores them; another may not.
        plan: without parts of tokens or of the model, whose shapes must be known beforehand.
        is_static: one graph is of one shape, too.
    """
    module = engine.module
    return (
        isinstance(module, Encoder)
        and module.config["outputs"] == "vocabulary"
        and type(task) is LanguageModellingTask
        and plan.tp == plan.pp == plan.cp == 1
        and not is_static
    )


def labelled_positions(targets: Tensor) -> Tensor:
    """Return where labels are in the row of all tokens, (N,); on paper, of the usual share."""
    if is_fake(targets):
        return torch.arange(round(SHARE * targets.numel()), device=targets.device)
    return (targets.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
