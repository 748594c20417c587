"""What is shown of long work: on a terminal, and nowhere else."""

import pytest

from deepseek.cli.progress import measurements, progress


def test_on_a_terminal_the_count_is_shown_with_the_total(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("rows", lambda: 1200) as show:
        show(600)
    assert "600 of 1,200 rows" in capsys.readouterr().err
    with progress("rows") as show:
        show(7)
    assert "7 rows" in capsys.readouterr().err


def test_where_nobody_looks_on_nothing_is_counted(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress("rows", lambda: pytest.fail("counted")) as show:
        show(1)
    assert not capsys.readouterr().err


def test_each_measurement_has_a_line_and_on_a_terminal_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with measurements("perplexity") as tell:
        for name in ("before", "after"):
            tell(name, 0, 40)
            tell(name, 16, 40)
            tell(name, 40, 40)
            shown = capsys.readouterr().err
            assert f"measuring perplexity ({name}): 40 samples" in shown
            assert "of 40 samples" in shown
