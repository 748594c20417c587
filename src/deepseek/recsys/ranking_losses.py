"""Losses of an order rather than of single labels, and the task that trains with them.

Papers: Rendle et al. 2009, "BPR" (arXiv 1205.2618), section 4; Jean et al. 2015, "On using very
large target vocabulary" (arXiv 1412.2007), eq. 8 (sampled softmax); Cao et al. 2007, "Learning to
rank: from pairwise to listwise" (ICML; ListNet, top one); Xia et al. 2008, "Listwise approach"
(ICML; ListMLE).

Shapes: B batch, K items, N drawn items.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.models.checks import check_choice
from deepseek.trainer.binary import BinaryTask
from deepseek.trainer.task import Batch

LOSSES = ("bpr", "listnet", "listmle")


def bpr_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Return `-log sigmoid(better - worse)` of each pair of scores."""
    return F.softplus(worse - better)


def sampled_softmax_loss(
    right: Float[Tensor, "B"],
    drawn: Float[Tensor, "B N"],
    log_right: Tensor | float = 0.0,
    log_drawn: Tensor | float = 0.0,
    is_hit: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B"]:
    """Return the cross-entropy of the right item against drawn ones.

    Args:
        right: score of the right item.
        drawn: scores of the others.
        log_right: logarithm of how often it is drawn.
        log_drawn: the same of the others; both 0: all alike.
        is_hit: drawn items that are the right one, which do not count.
    """
    right, drawn = right - log_right, drawn - log_drawn
    if is_hit is not None:
        drawn = drawn.masked_fill(is_hit, -torch.inf)
    return torch.cat([right[:, None], drawn], 1).logsumexp(1) - right


def listnet_loss(
    scores: Float[Tensor, "B K"],
    relevance: Float[Tensor, "B K"],
    is_there: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B"]:
    """Return the cross-entropy of the chances to be first, by scores and by relevance.

    The relevance of a list is its share of the sum, so that 0 is never first; a list without any is
    0.

    Args:
        scores: of each list.
        relevance: how good each item is, 0 or more.
        is_there: which places of the lists are filled.
    """
    if is_there is not None:
        scores = scores.masked_fill(~is_there, _lowest(scores))
        relevance = relevance * is_there
    share = relevance / relevance.sum(1, keepdim=True).clamp(min=1e-12)
    logs = torch.where(share > 0, scores.log_softmax(1), 0.0)
    return -(share * logs).sum(1)


def listmle_loss(
    scores: Float[Tensor, "B K"],
    relevance: Float[Tensor, "B K"],
    is_there: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B"]:
    """Return minus the log-likelihood of the order by relevance (Plackett and Luce).

    Items of one relevance are taken in the order they stand in.

    Args:
        scores: of each list.
        relevance: how good each item is.
        is_there: which places of the lists are filled.
    """
    if is_there is None:
        is_there = torch.ones_like(scores, dtype=torch.bool)
    order = relevance.masked_fill(~is_there, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    scores, is_there = scores.gather(1, order), is_there.gather(1, order)
    hidden = scores.masked_fill(~is_there, _lowest(scores))
    rest = hidden.flip(1).logcumsumexp(1).flip(1)
    return torch.where(is_there, rest - scores, 0.0).sum(1)


def _lowest(scores: Tensor) -> float:
    """Return what counts for nothing beside a score; of infinity gradients would be none."""
    return torch.finfo(scores.dtype).min / 2


class RankingTask(BinaryTask):
    """The rows of a batch that belong together are put in order: logits (B,), labels 0 or 1.

    Rows belong together where one column of `sparse` is the same: those of a user, or of a slate.
    Give batches that hold several rows of a group. In evaluation as `BinaryTask`.

    Args:
        loss: "bpr": each 1 against each 0 of its group; "listnet", "listmle": a group is a list.
        column: of `sparse`, by its number.

    Raises:
        ConfigError: the loss is not known.
    """

    def __init__(self, loss: str = "bpr", column: int = 0) -> None:
        super().__init__()
        check_choice(loss=(loss, LOSSES))
        if column < 0:
            raise ConfigError(f"column={column} is below 0", fix="give the number of a column")
        self.kind, self.column = loss, column

    def count_items(self, batch: Batch) -> int:
        """Return the number of rows that are 1: what the loss is a mean over."""
        return int((batch["targets"] == 1).sum())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss summed: of a 1 its mean over pairs, of a list times its ones."""
        scores, labels = outputs.float().reshape(-1), batch["targets"]
        groups = batch["sparse"][:, self.column]
        # one row of `is_there` for each row of the batch: its group as a list
        is_there = groups[:, None] == groups
        is_there = is_there & ~labels.isnan()
        yes, no = labels == 1, labels == 0
        if self.kind == "bpr":
            pairs = is_there & yes[:, None] & no
            losses = bpr_loss(scores[:, None], scores) * pairs
            return (losses.sum(1) / pairs.sum(1).clamp(min=1)).sum()
        loss = listnet_loss if self.kind == "listnet" else listmle_loss
        lists = scores.expand(len(scores), -1)
        relevance = labels.nan_to_num().expand(len(scores), -1)
        return (loss(lists, relevance, is_there) * yes).sum()
