import re

import pytest

from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import ConfigError


def test_settings_replace_what_is_known_and_a_layout_puts_the_rest_aside():
    known = TableOptions(column_names=("user", "click"), delimiter=";")
    assert known.changed([]) == known
    assert known.changed(["column_names=a, b"]) == TableOptions("auto", ("a", "b"), ";")
    assert known.changed([r"delimiter=\t"]).delimiter == "\t"
    assert known.changed(["layout=auto"]) == TableOptions()
    assert known.changed(["layout=criteo"]) == TableOptions("criteo")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("labels=click", "labels=click is no setting of how a table is read"),
        ("layuot=criteo", 'did you mean "layout"?'),
        ("layout", "layout is no setting"),
        ("layout=excel", "layout='excel' is not known"),
        ("delimiter=;;", "delimiter=';;' is not one character"),
        ("column_names=a,,b", "column_names='a,,b' has an empty name"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        TableOptions().changed([setting])
