import pytest

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.launch.submission import submit


def test_tool_gets_the_text_and_its_words_come_back():
    assert submit(["cat"], "a\nb\n") == "a\nb\n"


def test_tool_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no-such-tool is not on the path: nothing was submitted"):
        submit(["no-such-tool"], "")


def test_refusal_is_told_in_the_words_of_the_tool():
    with pytest.raises(DeepSeekError, match="exit code 3: no quota"):
        submit(["sh", "-c", "echo no quota >&2; exit 3"], "")
