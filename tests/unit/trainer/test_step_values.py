import math

import pytest
import torch

from deepseek.trainer.step_values import Accumulated, Measured, read_together

WIDE, NARROW = torch.float32, torch.bfloat16


@pytest.mark.parametrize("dtypes", [(WIDE, WIDE), (NARROW, WIDE), (torch.float64, WIDE)])
@pytest.mark.parametrize("values", [(0.1, 3e-39), (1e38, math.inf), (-0.3, math.nan)])
def test_two_scalars_are_read_as_each_would_be(dtypes, values):
    first, second = (torch.tensor(v, dtype=d) for v, d in zip(values, dtypes, strict=True))
    alone = [float(first), float(second)]
    assert repr(read_together(first, second)) == repr(tuple(alone))


def test_a_step_knows_its_numbers():
    loss_sum, norm = torch.tensor(3.25), torch.tensor(0.5)
    accumulated = Accumulated(loss_sum, 2, 2)
    measured = Measured(accumulated, loss_sum, norm, is_suspect=False, wants_stop=False)
    assert measured.numbers() == (3.25, 0.5)
