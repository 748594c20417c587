"""What each of several tasks weighs in a step: by how its gradient lies to those of the others.

The directions of these papers are sums of the tasks' gradients, and their factors follow from the
products of the gradients alone, a matrix of N x N: it is added up over micro-batches and ranks, and
solved on the host.

Shapes: N tasks.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from deepseek.datasets.randomness import permutation
from deepseek.errors import ConfigError
from deepseek.trainer.weighting import Needs, Seen, Weighting

SWEEPS, HALVINGS = 64, 60
TOLERANCE = 1e-9


class GradientWeighting(Weighting):
    """A weighting that follows from the products of the tasks' gradients in the step itself.

    Tasks without a label in the step are left out, and the others count as many of N as they are.
    """

    needs: Needs = "gradients"

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return the factors; equal ones where a product is not finite, as the step is bad."""
        found = np.full(self.num_tasks, 1 / self.num_tasks)
        if seen is None or seen.gram is None:
            return found
        here = np.flatnonzero(seen.is_present)
        gram = seen.gram[np.ix_(here, here)]
        found[~seen.is_present] = 0.0
        scale = gram.diagonal().max(initial=0.0)
        if np.isfinite(gram).all() and 0 < scale < math.inf:
            found[here] = self.solve(gram / scale) * len(here) / self.num_tasks
        return found

    @abstractmethod
    def solve(self, gram: np.ndarray) -> np.ndarray:
        """Return factors of the gradients, (n,), that give a mean over n tasks.

        Args:
            gram: their products (n, n), the largest square 1.
        """


class PCGrad(GradientWeighting):
    """The mean of the gradients, each without what runs against another.

    Paper: Yu et al. 2020, arXiv 2001.06782, algorithm 1. Each gradient meets the others in an order
    that is drawn anew, from the run's seed and the number of the step.
    """

    weighs_heads = False
    _count = 0

    def solve(self, gram: np.ndarray) -> np.ndarray:
        """Return the sum of the projected gradients' factors, over n."""
        num = len(gram)
        factors = np.eye(num)
        for own in range(num):
            order = permutation(num, self.seed, self._count, own)
            for other in order[order != own].tolist():
                product = factors[own] @ gram[:, other]
                if product < 0:
                    factors[own, other] -= product / gram[other, other]
        return factors.mean(0)

    def learn(self, seen: Seen, lr: float) -> None:
        """Count the step."""
        del seen, lr
        self._count += 1

    def state_dict(self) -> dict:
        """Return the count, which the order is drawn from."""
        return {"count": self._count}

    def load_state_dict(self, state: Mapping) -> None:
        """Take it back."""
        self._count = state["count"]


class CAGrad(GradientWeighting):
    """The direction near the mean gradient that is best for the task it is worst for.

    Paper: Liu et al. 2021, arXiv 2110.14048, algorithm 1: `g0 + c |g0| / |gw| gw`, where w on the
    simplex minimises `gw . g0 + c |g0| |gw|`. As in the authors' code it is divided by 1 + c^2.

    Args:
        c: how far it may be from the mean, >= 0; 0 is the mean.
    """

    weighs_heads = False

    def __init__(self, c: float = 0.4) -> None:
        if not 0 <= c < math.inf:
            raise ConfigError(f"c={c} is below 0", fix="use 0.4")
        self._c = c

    def solve(self, gram: np.ndarray) -> np.ndarray:
        """Return the direction's factors."""
        num = len(gram)
        mean = np.full(num, 1 / num)
        radius = self._c * math.sqrt(max(mean @ gram @ mean, 0.0))
        toward_mean = gram @ mean

        def slope(w: np.ndarray) -> np.ndarray:
            along = gram @ w
            return toward_mean + radius * along / max(math.sqrt(max(w @ along, 0.0)), 1e-12)

        w = minimise_on_simplex(slope, num)
        norm = math.sqrt(max(w @ gram @ w, 0.0))
        if norm < 1e-9:  # all but opposed: there is nothing that helps both
            return mean / (1 + self._c**2)
        return (mean + radius / norm * w) / (1 + self._c**2)


class MGDA(GradientWeighting):
    """The shortest of all weighted means of the gradients: it is downhill for every task.

    Papers: Désidéri 2012 (the min-norm point); Sener & Koltun 2018, arXiv 1810.04650, eq. 3.
    """

    def solve(self, gram: np.ndarray) -> np.ndarray:
        """Return the weights of the min-norm point, which add up to 1."""
        return minimise_on_simplex(lambda w: gram @ w, len(gram))


class RepresentationMGDA(MGDA):
    """MGDA on the gradients of the representation that the tasks share: one backward pass.

    Paper: Sener & Koltun 2018, arXiv 1810.04650, section 3.3 (MGDA-UB): an upper bound of what MGDA
    minimises. It is one where all tasks have labels of the same samples.
    """

    needs: Needs = "representation"


def minimise_on_simplex(slope: Callable[[np.ndarray], np.ndarray], num: int) -> np.ndarray:
    """Return the point of the simplex where a convex function is least, (num,).

    Weight is moved between two at a time, exactly, until nothing moves: for two tasks that is the
    solution, for a few it takes some sweeps.

    Args:
        slope: gradient of the function.
        num: of weights, which are >= 0 and add up to 1.
    """
    w = np.full(num, 1 / num)
    pairs = [(i, j) for i in range(num) for j in range(i)]
    for _ in range(SWEEPS):
        before = w
        for i, j in pairs:
            w = _move(slope, w, i, j)
        if np.abs(w - before).max(initial=0.0) < TOLERANCE or len(pairs) < 2:
            break
    return w


def _move(slope: Callable[[np.ndarray], np.ndarray], w: np.ndarray, i: int, j: int) -> np.ndarray:
    low, high, both = 0.0, w[i] + w[j], w[i] + w[j]
    moved = w.copy()
    for _ in range(HALVINGS):
        moved[i] = (low + high) / 2
        moved[j] = both - moved[i]
        found = slope(moved)
        if found[i] > found[j]:
            high = moved[i]
        else:
            low = moved[i]
    # an end of the range is reached only in the limit: take it where the slope does not turn
    for end in (0.0, both):
        if abs(moved[i] - end) < 1e-15 + both * 2.0**-50:
            moved[i], moved[j] = end, both - end
    return moved
