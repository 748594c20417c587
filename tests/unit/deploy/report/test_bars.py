import re

from deepseek.deploy.report.bars import Bar, bar_chart


def test_lengths_are_in_proportion_and_a_limit_is_behind_its_bar():
    chart = bar_chart([Bar("a", 1.0, "one", limit=4.0), Bar("b", 2.0, "two")], title="t", unit="u")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert widths[0] == 4 * widths[1] == 2 * widths[2]
    assert "a: one; b: two" in chart  # for those who do not see it


def test_names_are_escaped():
    assert "<b>" not in bar_chart([Bar("<b>", 1.0, "<b>")], title="<b>", unit="<b>")


def test_no_bars_are_no_chart_and_bars_of_nothing_are_one():
    assert bar_chart([], title="t", unit="u") == ""
    assert 'width="0.0"' in bar_chart([Bar("a", 0.0, "0")], title="t", unit="u")
