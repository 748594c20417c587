from pathlib import Path

import pytest

from deepseek.whole_file import replacing


def test_what_was_written_takes_the_place(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "new"


def test_after_an_error_the_old_file_stays_and_no_draft(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as draft:
        draft.write_text(Path("missing").read_text())
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"
