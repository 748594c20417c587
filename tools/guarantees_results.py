"""Write the last result of each promise into the table of docs/guarantees.md.

Results are those of a report of the tests, which a run of all of them writes:

    python -m pytest -m 'not long' -n auto --dist loadfile --junitxml report.xml
    python tools/guarantees_results.py report.xml

A promise whose tests are not in the report keeps what it had.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
ROW = re.compile(r"^(\| .* \| `(tests/\S+)\.py::(test_\w+)` \| .* \|) ([^|]*) \|$", re.M)


def read_outcomes(report: Path) -> tuple[str, dict[tuple[str, str], Counter]]:
    """Return the day of a report, and how many cases of each test passed, failed or skipped."""
    root = ET.parse(report).getroot()
    suite = root if root.tag == "testsuite" else root[0]
    outcomes: dict[tuple[str, str], Counter] = {}
    for case in suite.iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = (
            "failed" if kinds & {"failure", "error"} else
            "skipped" if "skipped" in kinds else "passed"
        )  # fmt: skip
        test = case.get("classname", ""), case.get("name", "").partition("[")[0]
        outcomes.setdefault(test, Counter())[outcome] += 1
    return suite.get("timestamp", "")[:10], outcomes


def fill(page: str, day: str, outcomes: dict[tuple[str, str], Counter]) -> str:
    """Return the page with the results in its table."""

    def filled(row: re.Match) -> str:
        found = outcomes.get((row[2].replace("/", "."), row[3]))
        if found is None:
            return row[0]
        counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))
        return f"{row[1]} {counts}, {day} |"

    return ROW.sub(filled, page)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: guarantees_results.py REPORT.xml")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), *read_outcomes(Path(sys.argv[1]))),
                    encoding="utf-8")  # fmt: skip
