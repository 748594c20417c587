import stat

import pytest

from deepseek.deploy.service.tokens import hash_token, is_known, new_token, read_hashes
from deepseek.errors import ConfigError


def test_a_new_token_is_let_in_and_no_other(tmp_path):
    file = tmp_path / "tokens.txt"
    first, second = new_token(file), new_token(file)
    assert first != second
    hashes = read_hashes(file)
    assert is_known(first, hashes)
    assert is_known(second, hashes)
    for wrong in ("", first[:-1], first + "x", hashes[0]):
        assert not is_known(wrong, hashes)


def test_the_file_has_hashes_and_only_its_owner_reads_it(tmp_path):
    file = tmp_path / "tokens.txt"
    token = new_token(file)
    assert token not in file.read_text()
    assert file.read_text().strip() == hash_token(token)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("# none\n", "is empty"),
        ("ds_secret\n", "entry 1 is no hash of a token"),
        ("a" * 64 + "\n" + "g" * 64, "entry 2 is no hash"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    file = tmp_path / "tokens.txt"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_hashes(file)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read") as error:
        read_hashes(tmp_path / "none")
    assert "--new-token" in (error.value.fix or "")
    with pytest.raises(ConfigError, match="cannot be written"):
        new_token(tmp_path / "no" / "folder")
