"""Metrics that the loop itself needs: sums on the device, read once per evaluation."""

import torch
from torch import Tensor


class Mean:
    """A mean over items, kept as sum and count on the device: no wait until `compute`."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, total: Tensor, count: int) -> None:
        """Add a sum over `count` items."""
        self.total = self.total + total.detach()
        self.count += count

    def compute(self) -> float:
        """Return the mean; NaN without items. Waits for the device."""
        return float(self.total) / self.count if self.count else float("nan")

    def state_dict(self) -> dict:
        """Return sum and count as numbers that JSON keeps exactly."""
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Take the state back."""
        # float32, as on the device: continued sums must round as uninterrupted ones do
        self.total = torch.tensor(state["total"], dtype=torch.float32)
        self.count = state["count"]


def count_correct(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Return how many of `labels` (B,) are among the `top` largest of `logits` (B, C)."""
    if top == 1:
        return (logits.argmax(-1) == labels).sum()
    return (logits.topk(top, dim=-1).indices == labels[:, None]).any(-1).sum()
