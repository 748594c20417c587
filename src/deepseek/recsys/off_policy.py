"""What a policy would have earned, from what another one did.

Papers: Horvitz & Thompson 1952 (IPS); Swaminathan & Joachims 2015, "The self-normalized estimator"
(NeurIPS; SNIPS); Dudik et al. 2011, "Doubly robust policy evaluation" (arXiv 1103.4601), eq. 1.

Shapes: N events, K actions.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.errors import DataError
from deepseek.trainer.bootstrap import Interval, bootstrap_interval


def off_policy_values(
    rewards: Sequence | np.ndarray,
    logged: Sequence | np.ndarray,
    target: Sequence | np.ndarray,
    *,
    expected_logged: np.ndarray | None = None,
    expected_target: np.ndarray | None = None,
    max_weight: float | None = None,
    groups: Sequence | None = None,
    num_rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the mean reward of the target policy by `ips`, `snips` and, with a model, `dr`.

    `ips = mean(w r)`, `snips = sum(w r) / sum(w)`, `dr = mean(q(target) + w (r - q(logged)))`,
    where `w = target / logged`.

    Args:
        rewards: of what was done, (N,).
        logged: probability with which the old policy did it, above 0, (N,).
        target: probability with which the new one would do it, (N,).
        expected_logged: reward that a model expects of what was done, (N,).
        expected_target: reward that it expects of the new policy, mean over its actions, (N,).
        max_weight: weights above are cut, which makes the estimate low; `None`: none is.
        groups: the user of each event: intervals are drawn by user.
        num_rounds: draws.
        seed: of the draws.

    Raises:
        DataError: shapes differ, or a probability is not one; a policy cannot be judged by what the
            old one never did.
    """
    columns = [np.asarray(each, np.float64) for each in (rewards, logged, target)]
    given = [each for each in (expected_logged, expected_target) if each is not None]
    if len(given) == 1:
        raise DataError("one of the two expected rewards is missing", fix="give both, or none")
    columns += [np.asarray(each, np.float64) for each in given]
    if len({each.shape for each in columns}) != 1:
        raise DataError(
            f"events of shapes {[each.shape for each in columns]}", fix="give one number an event"
        )
    reward, old, new = columns[:3]
    if not ((old > 0) & (old <= 1) & (new >= 0) & (new <= 1)).all():
        raise DataError(
            "a probability is outside 0..1, or the old policy's is 0",
            fix="log the probability with which each action was taken",
        )
    weights = new / old
    if max_weight is not None:
        weights = np.minimum(weights, max_weight)
    rows = np.stack([weights * reward, weights], 1)
    options = {"groups": groups, "num_rounds": num_rounds, "seed": seed}
    found = {
        "ips": bootstrap_interval(rows[:, 0], **options),
        "snips": bootstrap_interval(
            rows, lambda part: part[:, 0].sum() / max(part[:, 1].sum(), 1e-12), **options
        ),
    }
    if given:
        said, wished = columns[3:]
        found["dr"] = bootstrap_interval(wished + weights * (reward - said), **options)
    return found
