"""Follow every link of the pages that leaves them, and say which are dead and which nobody reached.

    python tools/check_links.py [FOLDER]

Links between the pages are checked by `make docs`. Exits with 1 where a link is dead, and where one
could not be reached, as without a network: then nothing is known of it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNREACHED = re.compile(
    r"NameResolution|Name or service|Connection(Refused|Reset|Timeout)?Error|refused|timed out"
    r"|unreachable|ProxyError",
    re.I,
)
"""What an error says where no server answered; a server that answers with 404 says otherwise."""


def sort_links(lines: Sequence[str]) -> tuple[int, list[dict], list[dict]]:
    """Return how many links are well, those that are dead, and those that were not reached.

    Args:
        lines: of Sphinx's `output.json`.
    """
    links = [json.loads(line) for line in lines]
    looked_at = [link for link in links if link["status"] not in ("unchecked", "ignored", "local")]
    bad = [link for link in looked_at if link["status"] in ("broken", "timeout")]
    unreached = [
        link for link in bad if link["status"] == "timeout" or UNREACHED.search(link["info"])
    ]
    return len(looked_at) - len(bad), [link for link in bad if link not in unreached], unreached


def main(folder: Path) -> int:
    """Check the links of the pages in `folder`; return the exit code."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "sphinx", "-Q", "-b", "linkcheck", str(folder), out]
        code = subprocess.run(words).returncode
        output = Path(out, "output.json")
        if not output.exists():
            print(f"sphinx ended with {code} before it looked at a link: run make docs")
            return 1
        well, dead, unreached = sort_links(output.read_text(encoding="utf-8").splitlines())
    for link in dead:
        print(f"dead         {link['filename']}:{link['lineno']}  {link['uri']}  {link['info']}")
    for link in unreached:
        print(f"not reached  {link['filename']}:{link['lineno']}  {link['uri']}")
    print(f"{well} links are well, {len(dead)} dead, {len(unreached)} could not be checked.")
    if unreached and not well:
        print("No server answered at all: there is no network here, and nothing was checked.")
    return int(bool(dead or unreached))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"))
