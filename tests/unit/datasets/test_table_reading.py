import re

import pytest

from deepseek.datasets import ColumnSource
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import ConfigError, DataError


def test_settings_replace_what_is_known_and_a_layout_puts_the_rest_aside():
    known = TableOptions(column_names=("user", "click"), delimiter=";")
    assert known.changed([]) == known
    assert known.changed(["column_names=a, b"]) == TableOptions("auto", ("a", "b"), ";")
    assert known.changed([r"delimiter=\t"]).delimiter == "\t"
    assert known.changed(["layout=auto"]) == TableOptions()
    assert known.changed(["layout=criteo"]) == TableOptions("criteo")
    assert TableOptions("criteo").changed(["column_names=a,b"]) == TableOptions("auto", ("a", "b"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("labels=click", "labels=click is no setting of how a table is read"),
        ("layuot=criteo", 'did you mean "layout"?'),
        ("layout", "layout is no setting"),
        ("layout=excel", "layout='excel' is not known"),
        ("delimiter=;;", "delimiter=';;' is not one character"),
        ("column_names=a,,b", "column_names='a,,b' has an empty name"),
        ("layout=criteo column_names=a,b", "column_names=a,b would be ignored"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        TableOptions().changed(setting.split())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("u,i,1\n", {"user": ["u"], "item": ["i"], "click": ["1"]}),
        ("user,item,click\nu,i,1\n", {"user": ["u"], "item": ["i"], "click": ["1"]}),
        ("item, user ,click\ni,u,1\n", {"item": ["i"], "user": ["u"], "click": ["1"]}),
        ("item,user\ni,u\n", {"item": ["i"], "user": ["u"]}),
        ("time,user,item\n7,u,i\n", {"time": ["7"], "user": ["u"], "item": ["i"]}),
        ("user,i,1\n", {"user": ["user"], "item": ["i"], "click": ["1"]}),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_of_names_that_were_given_is_read_in_its_own_order(text, wanted, mark, tmp_path):
    (tmp_path / "a.csv").write_text(mark + text, encoding="utf-8")
    source = ColumnSource(tmp_path / "a.csv", TableOptions(column_names=("user", "item", "click")))
    (chunk,) = source.chunks()
    assert list(source.columns) == list(wanted)
    assert {name: column.to_pylist() for name, column in chunk.items()} == wanted


def test_each_file_of_a_folder_has_its_own_order(tmp_path):
    (tmp_path / "a.csv").write_text("u1,i1\n")
    (tmp_path / "b.csv").write_text("item,user\ni2,u2\n")
    source = ColumnSource(tmp_path, TableOptions(column_names=("user", "item")))
    found = [chunk["user"].to_pylist() for chunk in source.chunks(["user", "item"])]
    assert found == [["u1"], ["u2"]]


@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_a_file_of_a_byte_order_mark_alone_is_empty(names, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match=re.escape("a.csv is empty")):
        list(ColumnSource(tmp_path / "a.csv", TableOptions(column_names=names)).chunks())
