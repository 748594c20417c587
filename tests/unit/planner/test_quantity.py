import pytest

from deepseek.errors import ConfigError
from deepseek.planner.quantity import parse_count, parse_rate, show_count, show_seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [("300B", 3e11), ("1.5T", 1.5e12), ("40_000", 4e4), ("2 M", 2e6), ("7k", 7e3)],
)
def test_counts_are_read(text, number):
    assert parse_count(text, "--tokens") == pytest.approx(number)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("400GB/s", 4e11), ("3200Gbit/s", 4e11), ("100 Gb/s", 12.5e9), ("1TBps", 1e12)],
)
def test_rates_tell_bits_from_bytes(text, rate):
    assert parse_rate(text, "--node-bandwidth") == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "many", "0", "-3B", "3X", "1.2.3B", "."])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigError, match="--tokens"):
        parse_count(text, "--tokens")


@pytest.mark.parametrize("text", ["", "400", "400GB", "0GB/s", "fast"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ConfigError, match="--node-bandwidth"):
        parse_rate(text, "--node-bandwidth")


def test_numbers_are_shown_with_the_digits_that_matter():
    assert [show_count(n) for n in (512, 174.6e9, 999.9e9, 1e12)] == ["512", "175B", "1T", "1T"]
    assert [show_seconds(s) for s in (-1e-15, 0.0123, 3.456, 1234.5)] == [
        "0.000",
        "0.012",
        "3.46",
        "1,234",
    ]
