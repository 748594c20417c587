"""The link check tells a dead link from one that nobody reached."""

import importlib.util
import json
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "tools" / "check_links.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("check_links", SOURCE)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def line(uri, status, info=""):
    record = {"filename": "a.md", "lineno": 1, "status": status, "uri": uri, "info": info}
    return json.dumps(record)


def test_a_link_is_well_dead_or_not_reached():
    lines = [
        line("https://a", "working"),
        line("https://b", "redirected", "https://c"),
        line("#anchor", "unchecked"),
        line("https://d", "broken", "404 Client Error: Not Found for url: https://d"),
        line("https://e", "broken", "... NameResolutionError: Failed to resolve 'e'"),
        line("https://f", "timeout", "Read timed out."),
    ]
    well, dead, unreached = load_tool().sort_links(lines)
    assert well == 2
    assert [link["uri"] for link in dead] == ["https://d"]
    assert [link["uri"] for link in unreached] == ["https://e", "https://f"]
