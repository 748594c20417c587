"""What each of several tasks weighs in a step: by its loss, learnt as the run goes on.

Every weighting comes down to one number for each task, by which its loss is multiplied; those that
look at gradients (`gradient_weighting`) find theirs from the products of the tasks' gradients.
Weights add up to about 1, so that the loss of a run is a mean over its tasks.

Shapes: N tasks. Everything here is float64, on the host, and the same on every rank.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deepseek.errors import ConfigError
from deepseek.registry import Registry

Needs = Literal["nothing", "losses", "representation", "gradients"]
SMALLEST = 1e-8
"""What a loss counts as at least, where its logarithm is taken or it is divided by."""


@dataclass(frozen=True)
class Seen:
    """A step as a weighting sees it, over all ranks.

    Attributes:
        losses: mean of each task over its labels, (N,); 0 where it has none.
        is_present: which tasks have a label in the step, (N,).
        gram: products of the gradients of these means, (N, N), where they were asked for.
    """

    losses: np.ndarray
    is_present: np.ndarray
    gram: np.ndarray | None = None


class Weighting(ABC):
    """Says what each task's loss weighs. Subclass it for another rule.

    Attributes:
        needs: what of a step must be known before its weights: "nothing"; its "losses"; or the
            products of the tasks' gradients, on the "representation" that the tasks share, or on
            the weights of the model that they share ("gradients").
        watches_representation: whether `learn` is given the products on the representation.
        weighs_heads: whether weights are of all gradients; else of shared ones, and each head
            learns from its task's loss over N.
    """

    needs: Needs = "nothing"
    watches_representation = False
    weighs_heads = True

    def begin(self, task_names: Sequence[str], steps_per_epoch: int, seed: int) -> None:
        """Take what a run is; called once, before its first step.

        Raises:
            ConfigError: the settings do not fit.
        """
        self.num_tasks, self.steps_per_epoch, self.seed = len(task_names), steps_per_epoch, seed
        self._begin(task_names)

    def _begin(self, task_names: Sequence[str]) -> None:
        """Make the state."""
        del task_names

    @abstractmethod
    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return what each loss is multiplied by, (N,); `seen` holds what `needs` names."""

    def learn(self, seen: Seen, lr: float) -> None:
        """Take a step into account that has updated the model.

        Args:
            seen: with the losses, and the products that were asked for.
            lr: learning rate of the step.
        """
        del seen, lr

    def penalty(self) -> float:
        """Return what is added to the weighted losses, and does not depend on the model."""
        return 0.0

    def state_dict(self) -> dict:
        """Return what a resumed run goes on from; JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping) -> None:
        """Take the state back."""
        del state


class Adam:
    """Adam (Kingma & Ba 2014, arXiv 1412.6980) for the few numbers that a weighting learns."""

    def __init__(self, size: int) -> None:
        self.first, self.second, self.count = np.zeros(size), np.zeros(size), 0

    def step(self, values: np.ndarray, gradient: np.ndarray, lr: float) -> np.ndarray:
        """Return the values after a step down the gradient."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return values - lr * first / (np.sqrt(second) + 1e-8)

    def state_dict(self) -> dict:
        """Return both moments and the count."""
        return {
            "first": self.first.tolist(),
            "second": self.second.tolist(),
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        self.first, self.second = np.array(state["first"]), np.array(state["second"])
        self.count = state["count"]


class Equal(Weighting):
    """The mean of the tasks' losses."""

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return 1 / N each."""
        del seen
        return np.full(self.num_tasks, 1 / self.num_tasks)


class Fixed(Weighting):
    """Weights that are given.

    Args:
        weights: task -> its weight, >= 0, as it stands: they are not scaled.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._given = dict(weights)

    def _begin(self, task_names: Sequence[str]) -> None:
        if set(self._given) != set(task_names):
            raise ConfigError(
                f"weights of {sorted(self._given)} for the tasks {sorted(task_names)}",
                fix="give every task a weight, and nothing else",
            )
        if not all(0 <= weight < math.inf for weight in self._given.values()):
            raise ConfigError(
                f"weights={self._given} are not all numbers >= 0", fix="give 0 or more"
            )
        self._values = np.array([self._given[name] for name in task_names], np.float64)

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return what was given."""
        del seen
        return self._values


class Learnt(Weighting):
    """A weighting that learns a number for each task by Adam.

    Args:
        lr: learning rate of these numbers; `None`: that of each step.
    """

    def __init__(self, lr: float | None) -> None:
        if lr is not None and not 0 < lr < math.inf:
            raise ConfigError(f"lr={lr} of a weighting is not above 0", fix="use 0.025")
        self._lr = lr

    def _begin(self, task_names: Sequence[str]) -> None:
        self.values, self._adam = np.zeros(len(task_names)), Adam(len(task_names))

    def _descend(self, gradient: np.ndarray, lr: float) -> None:
        if np.isfinite(gradient).all():
            self.values = self._adam.step(self.values, gradient, self._lr or lr)

    def state_dict(self) -> dict:
        """Return the numbers and the moments."""
        return {"values": self.values.tolist(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        self.values = np.array(state["values"])
        self._adam.load_state_dict(state["adam"])


class Uncertainty(Learnt):
    """Each loss over a variance that is learnt: sum of `exp(-s) L + s` over the tasks, over N.

    Paper: Kendall et al. 2018, arXiv 1705.07115, eq. 7, with s the logarithm of the variance.
    Departure: no factor of 1/2, so that s = 0 is the mean of the losses.

    Args:
        lr: learning rate of s; `None`: that of each step, as if s were a weight of the model.
    """

    def __init__(self, lr: float | None = None) -> None:
        super().__init__(lr)

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return `exp(-s) / N`."""
        del seen
        return np.exp(-self.values) / self.num_tasks

    def penalty(self) -> float:
        """Return the mean of s."""
        return float(self.values.mean())

    def learn(self, seen: Seen, lr: float) -> None:
        """Go down the gradient of the loss by s, `(1 - exp(-s) L) / N`."""
        gradient = (1 - np.exp(-self.values) * seen.losses) / self.num_tasks
        self._descend(gradient * seen.is_present, lr)


class DynamicAverage(Weighting):
    """More weight for a task whose loss has fallen less: softmax of `L(t - 1) / L(t - 2) / T`.

    Paper: Liu et al. 2019 (DWA), arXiv 1803.10704, eq. 7; L(t) is the mean loss of an epoch, and
    the first two weigh all tasks alike. Departure: weights add up to 1 rather than N.

    Args:
        temperature: T; the larger, the more alike weights are.
        window: optimizer steps that a mean is taken over; "auto": an epoch.
    """

    def __init__(self, temperature: float = 2.0, window: int | Literal["auto"] = "auto") -> None:
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature={temperature} is not above 0", fix="use 2.0")
        if not isinstance(window, str) and window < 1:
            raise ConfigError(f"window={window} is below 1 step", fix='give 1 or more, or "auto"')
        self._temperature, self._given = temperature, window

    def _begin(self, task_names: Sequence[str]) -> None:
        given = self._given
        self._window: int = self.steps_per_epoch if isinstance(given, str) else given
        self._sums, self._counts = np.zeros(len(task_names)), np.zeros(len(task_names))
        self._num_steps, self._means = 0, []

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return the weights of this window."""
        del seen
        if len(self._means) < 2:
            return np.full(self.num_tasks, 1 / self.num_tasks)
        before, last = np.maximum(np.array(self._means), SMALLEST)
        return softmax(last / before / self._temperature)

    def learn(self, seen: Seen, lr: float) -> None:
        """Add the losses to the mean of the window."""
        del lr
        self._sums += np.where(seen.is_present, seen.losses, 0.0)
        self._counts += seen.is_present
        self._num_steps += 1
        if self._num_steps % self._window == 0:
            known = self._means[-1] if self._means else [1.0] * self.num_tasks
            means = np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), known)
            self._means = [*self._means[-1:], means.tolist()]
            self._sums, self._counts = np.zeros(self.num_tasks), np.zeros(self.num_tasks)

    def state_dict(self) -> dict:
        """Return the means, and the sums of the window that is under way."""
        return {
            "means": self._means,
            "sums": self._sums.tolist(),
            "counts": self._counts.tolist(),
            "num_steps": self._num_steps,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        self._means, self._num_steps = state["means"], state["num_steps"]
        self._sums, self._counts = np.array(state["sums"]), np.array(state["counts"])


class GradNorm(Learnt):
    """Weights under which tasks that learn slowly have the larger gradients.

    Paper: Chen et al. 2018, arXiv 1711.02257, algorithm 1: `w` goes down the gradient of
    `|w_i n_i - mean(w n) r_i^alpha|`, with `n` the norms of the tasks' gradients and `r` how far
    each loss has fallen, over the mean. Departures: norms are of the gradient of the representation
    that the tasks share, not of its last layer's weights; Adam; weights add up to 1 rather than N.

    Args:
        alpha: how strongly rates of learning are made alike, >= 0.
        lr: learning rate of the weights.
    """

    watches_representation = True

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(lr)
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"alpha={alpha} is below 0", fix="use 1.5")
        self._alpha = alpha

    def _begin(self, task_names: Sequence[str]) -> None:
        super()._begin(task_names)
        self.values = np.ones(len(task_names))
        self._first = np.zeros(len(task_names))  # losses; 0: not seen yet

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return `w / N`."""
        del seen
        return self.values / self.num_tasks

    def learn(self, seen: Seen, lr: float) -> None:
        """Move the weights of the tasks that were there, and scale all to the same sum."""
        here = seen.is_present
        self._first = np.where(
            here & (self._first == 0), np.maximum(seen.losses, SMALLEST), self._first
        )
        if seen.gram is None or here.sum() < 2:
            return
        norms = np.sqrt(np.maximum(np.diag(seen.gram), 0))[here]
        fallen = seen.losses[here] / self._first[here]
        rates = fallen / max(fallen.mean(), SMALLEST)
        own = self.values[here] * norms
        gradient = np.zeros(self.num_tasks)
        gradient[here] = np.sign(own - own.mean() * rates**self._alpha) * norms
        self._descend(gradient, lr)
        self.values = np.maximum(self.values, 1e-3)
        self.values *= self.num_tasks / self.values.sum()

    def state_dict(self) -> dict:
        """Return weights, moments and the first losses."""
        return {**super().state_dict(), "first_losses": self._first.tolist()}

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._first = np.array(state["first_losses"])


class FAMO(Learnt):
    """Weights under which the logarithms of all losses fall alike, from losses alone.

    Paper: Liu et al. 2023, arXiv 2306.03792, algorithm 1. Departures: losses are running means,
    for one of a small batch may come near 0 by chance and take all the weight; and their change is
    that from one step to the next, not of one batch before and after its update, which would take
    another forward pass.

    Args:
        lr: learning rate of the logits of the weights.
        decay: of these logits, gamma in the paper.
        smoothing: what the running mean keeps at a step; 0: the losses of the step alone.
    """

    needs: Needs = "losses"

    def __init__(self, lr: float = 0.025, decay: float = 1e-3, smoothing: float = 0.9) -> None:
        super().__init__(lr)
        if not 0 <= decay < math.inf:
            raise ConfigError(f"decay={decay} is below 0", fix="use 0.001")
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing={smoothing} is not in 0..1", fix="use 0.9")
        self._decay, self._smoothing = decay, smoothing

    def _begin(self, task_names: Sequence[str]) -> None:
        super()._begin(task_names)
        self._mean = np.zeros(len(task_names))  # 0: not seen yet

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return `z_i / L_i` over their sum, z the softmax of the logits."""
        if seen is None:
            return softmax(self.values)
        shares = softmax(self.values) / self._mean_with(seen) * seen.is_present
        return shares / max(shares.sum(), SMALLEST)

    def learn(self, seen: Seen, lr: float) -> None:
        """Move the logits by how each loss has changed since it was seen last."""
        is_known = seen.is_present & (self._mean > 0)
        mean = self._mean_with(seen)
        fallen = np.where(is_known, np.log(np.where(is_known, self._mean, 1.0) / mean), 0.0)
        shares = softmax(self.values)
        if is_known.any():
            gradient = shares * (fallen - shares @ fallen)  # of softmax, times `fallen`
            self._descend(gradient + self._decay * self.values, lr)
        self._mean = np.where(seen.is_present, mean, self._mean)

    def _mean_with(self, seen: Seen) -> np.ndarray:
        """Return the running means after the losses of `seen`."""
        kept = np.where(self._mean > 0, self._smoothing, 0.0)
        return np.maximum(kept * self._mean + (1 - kept) * seen.losses, SMALLEST)

    def state_dict(self) -> dict:
        """Return logits, moments and the mean losses."""
        return {**super().state_dict(), "mean_losses": self._mean.tolist()}

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._mean = np.array(state["mean_losses"])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return shares that add up to 1."""
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


WEIGHTINGS: Registry[type[Weighting]] = Registry(
    "weighting",
    {
        "equal": "deepseek.trainer.weighting:Equal",
        "fixed": "deepseek.trainer.weighting:Fixed",
        "uncertainty": "deepseek.trainer.weighting:Uncertainty",
        "dwa": "deepseek.trainer.weighting:DynamicAverage",
        "constraint": "deepseek.trainer.constraint_weighting:Constraint",
        "gradnorm": "deepseek.trainer.weighting:GradNorm",
        "famo": "deepseek.trainer.weighting:FAMO",
        "pcgrad": "deepseek.trainer.gradient_weighting:PCGrad",
        "cagrad": "deepseek.trainer.gradient_weighting:CAGrad",
        "mgda": "deepseek.trainer.gradient_weighting:MGDA",
        "mgda_ub": "deepseek.trainer.gradient_weighting:RepresentationMGDA",
    },
)


def make_weighting(given: "str | Mapping | Weighting") -> Weighting:
    """Return a weighting from its name, from `{"name": ..., SETTING: ...}`, or as it is.

    Raises:
        ConfigError: the name or a setting is not known.
    """
    if isinstance(given, Weighting):
        return given
    settings = {"name": given} if isinstance(given, str) else dict(given)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"weighting={dict(settings)} has no name",
            fix=f"add name, one of {', '.join(WEIGHTINGS.names())}",
        )
    try:
        return WEIGHTINGS.get(name)(**settings)
    except TypeError as error:
        raise ConfigError(
            f"weighting {name!r} does not take {settings}: {error}",
            fix="look its settings up in docs/multitask.md",
        ) from error
