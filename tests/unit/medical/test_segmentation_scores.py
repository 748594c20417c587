import numpy as np
import pytest

from deepseek.errors import DataError
from deepseek.medical import dice_by_class, hausdorff_mm


def test_the_distance_of_two_boxes_is_their_shift_in_mm():
    pytest.importorskip("scipy")
    found, known = np.zeros((2, 12, 12, 12), bool)
    found[2:5, 2:5, 2:5] = known[6:9, 2:5, 2:5] = True
    assert hausdorff_mm(found, known, (2.5, 1, 1), 100) == 10.0


def test_empty_masks():
    full, empty = np.ones((2, 2, 2), int), np.zeros((2, 2, 2), int)
    np.testing.assert_array_equal(dice_by_class(full, full, 3), [np.nan, 1, np.nan])
    assert dice_by_class(full, empty, 2).tolist() == [0, 0]
    assert np.isinf(hausdorff_mm(full, empty))
    assert np.isnan(hausdorff_mm(empty, empty))


def test_labels_to_skip_are_not_counted_and_others_refused():
    known = np.array([[[0, 1, -100]]])
    assert dice_by_class(np.array([[[0, 1, 1]]]), known, 2).tolist() == [1, 1]
    with pytest.raises(DataError, match=r"labels that are found go from 0 to 7, outside 0\.\.1"):
        dice_by_class(np.array([[[0, 7, 1]]]), known, 2)
    with pytest.raises(DataError, match=r"found has the shape \(1, 1, 2\), known \(1, 1, 3\)"):
        dice_by_class(np.zeros((1, 1, 2)), known, 2)
