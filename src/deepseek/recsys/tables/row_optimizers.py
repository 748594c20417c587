"""Optimizers whose state is a part of each row: it comes, moves and goes with its id.

A row that a step does not touch stays as it is, moments too, as with `torch.optim.SparseAdam`.

Papers: Duchi et al. 2011, "Adaptive subgradient methods" (JMLR 12), AdaGrad; McMahan et al. 2013,
"Ad click prediction: a view from the trenches" (KDD), algorithm 1; Kingma & Ba 2015, arXiv
1412.6980, algorithm 1, with one second moment for a row (as in torchrec's partial row-wise Adam).

Shapes: U rows, E numbers of a vector, S numbers of a state.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from deepseek.errors import ConfigError


@dataclass
class RowOptimizer(ABC):
    """What a step does to the rows it touches.

    Args:
        lr: learning rate, > 0; may be changed between steps.
    """

    lr: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0 or (name == "lr" and not value > 0):
                raise ConfigError(
                    f"{name}={value!r} of {type(self).__name__} is too small",
                    fix=f"give {name} {'above 0' if name == 'lr' else 'of 0 or more'}",
                )
        for name in ("beta1", "beta2"):
            if vars(self).get(name, 0) >= 1:
                raise ConfigError(
                    f"{name}={vars(self)[name]!r} is not below 1", fix=f"give 0 <= {name} < 1"
                )

    @abstractmethod
    def state_size(self, dim: int) -> int:
        """Return S, for vectors of E = `dim` numbers."""

    @abstractmethod
    def begin(self, weights: Float[Tensor, "U E"], state: Float[Tensor, "U S"]) -> None:
        """Write the state of new rows, in place; `weights` are their first vectors."""

    @abstractmethod
    def update(
        self,
        weights: Float[Tensor, "U E"],
        state: Float[Tensor, "U S"],
        gradients: Float[Tensor, "U E"],
    ) -> None:
        """Change rows and their state in place."""


@dataclass
class AdaGrad(RowOptimizer):
    """Every number has its own sum of squared gradients; equals `torch.optim.Adagrad`.

    Args:
        lr: learning rate.
        initial_accumulator: what the sums begin with.
        eps: added to their roots.
    """

    lr: float = 0.05
    initial_accumulator: float = 0.0
    eps: float = 1e-10

    def state_size(self, dim: int) -> int:
        """Return E."""
        return dim

    def begin(self, weights: Tensor, state: Tensor) -> None:
        """Write the first sums."""
        state.fill_(self.initial_accumulator)

    def update(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """Add to the sums, and go down."""
        state.addcmul_(gradients, gradients)
        weights.addcdiv_(gradients, state.sqrt().add_(self.eps), value=-self.lr)


@dataclass
class FTRL(RowOptimizer):
    """Follow the regularised leader, per number: with `l1` most weights are exactly 0.

    The sums begin such that the first vector is the leader; the paper begins with weights of 0.

    Args:
        lr: alpha of the paper.
        beta: smooths the first steps, > 0.
        l1: strength of the absolute values.
        l2: strength of the squares.
    """

    lr: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def state_size(self, dim: int) -> int:
        """Return 2 E: z and n."""
        return 2 * dim

    def begin(self, weights: Tensor, state: Tensor) -> None:
        """Write the z whose leader the first vector is, and n = 0."""
        z, n = state.chunk(2, 1)
        n.zero_()
        z.copy_(weights * -(self.beta / self.lr + self.l2) - weights.sign() * self.l1)

    def update(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """Add to z and n, and take the leader."""
        z, n = state.chunk(2, 1)
        root = n.sqrt()
        n.addcmul_(gradients, gradients)
        new_root = n.sqrt()
        z.add_(gradients).addcmul_((new_root - root).div_(self.lr), weights, value=-1)
        strength = new_root.add_(self.beta).div_(self.lr).add_(self.l2)
        shrunk = z.abs().sub_(self.l1).clamp_(min=0).mul_(z.sign())
        weights.copy_(shrunk.neg_().div_(strength))


@dataclass
class RowAdam(RowOptimizer):
    """Adam with one second moment for a row, the mean of its squares, and a count of its steps.

    Args:
        lr: learning rate.
        beta1: of the first moment.
        beta2: of the second one.
        eps: added to its root.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def state_size(self, dim: int) -> int:
        """Return E + 2: the first moments, the second one, the steps."""
        return dim + 2

    def begin(self, weights: Tensor, state: Tensor) -> None:
        """Write zeros."""
        state.zero_()

    def update(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """Move the moments, and go down."""
        first, second, steps = state[:, :-2], state[:, -2:-1], state[:, -1:]
        steps.add_(1)
        first.lerp_(gradients, 1 - self.beta1)
        second.lerp_(gradients.square().mean(1, keepdim=True), 1 - self.beta2)
        root = (second / (1 - self.beta2**steps)).sqrt_().add_(self.eps)
        weights.addcdiv_(first, root * (1 - self.beta1**steps), value=-self.lr)
