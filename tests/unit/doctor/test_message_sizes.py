import pytest

from deepseek.doctor.message_sizes import parse_sizes, size_text
from deepseek.errors import ConfigError


def test_sizes_double_from_the_first_to_the_last():
    assert parse_sizes("1KiB:8KiB") == [1024, 2048, 4096, 8192]
    assert parse_sizes("1k:3K") == [1024, 2048]
    assert parse_sizes("512") == [512]
    assert len(parse_sizes("1KiB:64MiB")) == 17


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no size"),
        ("1KB", "'1KB' is no size"),
        ("1KiB:", "'' is no size"),
        ("-4:8", "'-4' is no size"),
        ("4MiB:1KiB", "4194304 to 1024 bytes is no range"),
        ("1:8", "1 to 8 bytes"),
        ("1KiB:99GiB", "to 106300440576 bytes"),
    ],
)
def test_what_is_no_range_of_sizes_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_sizes(text)


def test_sizes_are_shown_in_their_unit():
    assert [size_text(size) for size in (12, 1024, 3 * 2**19, 2**30)] == [
        "12 B",
        "1 KiB",
        "1.5 MiB",
        "1 GiB",
    ]
