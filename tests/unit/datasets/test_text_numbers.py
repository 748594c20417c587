import math

import pytest

from deepseek.datasets.text_numbers import read_number, read_whole_number


def test_numbers_are_read_from_text_and_taken_as_they_are():
    assert [read_number(each) for each in (" -1.5 ", "1e3", "+7", 3, True)] == [-1.5, 1e3, 7, 3, 1]
    assert math.isnan(read_number("nan"))
    assert [read_whole_number(each) for each in ("010", -3, 2.0)] == [10, -3, 2]


@pytest.mark.parametrize("value", ["1_0", "1_0.5", b"1_0", "", "ten", None, [1], 10**400])
def test_digits_divided_by_a_line_are_no_number(value):
    with pytest.raises(ValueError):  # noqa: PT011  # words of Python's own
        read_number(value)


@pytest.mark.parametrize("value", ["1_0", "1.0", 1.5, math.inf, None])
def test_whole_numbers_are_written_with_digits_alone(value):
    with pytest.raises(ValueError):  # noqa: PT011
        read_whole_number(value)
