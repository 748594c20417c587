"""The report page: every section of a run in one HTML file without network references.

The page forbids itself everything but its own style, its own script (by hash) and embedded
pictures, so that even text that escaped our escaping could neither run nor call home.
"""

import base64
import hashlib
from importlib import resources
from pathlib import Path

from deepseek.deploy.report.classes import class_sections
from deepseek.deploy.report.curves import curve_sections
from deepseek.deploy.report.gallery import gallery_section
from deepseek.deploy.report.markup import Section, text
from deepseek.deploy.report.overview import (
    config_section,
    environment_section,
    events_section,
    header,
    summary_section,
)
from deepseek.deploy.report.profile import profile_section
from deepseek.deploy.report.run_folder import RunFolder, read_run_folder
from deepseek.version import __version__
from deepseek.whole_file import replacing

FILE_NAME = "report.html"


def write_report(run_dir: Path) -> Path:
    """Draw the run in `run_dir` and write `run_dir/report.html`.

    A section whose data is missing says so in one line. The file is replaced in one move: a reader
    never sees half of it.

    Args:
        run_dir: a run folder, of a finished run or not.

    Returns:
        The path of the report.

    Raises:
        DataError: if `run_dir` is no folder, or nothing of a run is in it.
    """
    run_dir = Path(run_dir)
    page = render_page(read_run_folder(run_dir))
    path = run_dir / FILE_NAME
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def render_page(run: RunFolder) -> str:
    """Return the HTML of the report."""
    curves, optimization, performance = curve_sections(run)
    sections = [
        summary_section(run), curves, optimization, *class_sections(run), gallery_section(run),
        performance, profile_section(run), events_section(run), config_section(run),
        environment_section(run),
    ]  # fmt: skip
    return assemble_page(
        f"{run.path.resolve().name} · run report", header(run), sections,
        f"Written by deepseek {__version__} from the run folder alone.",
    )  # fmt: skip


def assemble_page(title: str, head: str, sections: list[Section], foot: str) -> str:
    """Return the HTML of a page that needs no other file and no network.

    Args:
        title: of the window, plain text.
        head: HTML above the sections.
        sections: in order.
        foot: last line, plain text.
    """
    style, script = _resource("style.css"), _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
        f" form-action 'none'; script-src 'sha256-{digest}'"
    )
    body = "\n".join(section.render() for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title>\n<style>{style}"
        "</style></head>\n"
        f"<body>{head}{_navigation(sections)}<main>{body}</main>"
        f"<footer>{text(foot)}</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _navigation(sections: list[Section]) -> str:
    links = "".join(
        f'<a href="#{section.id}">{text(section.title)}</a>' for section in sections if section.body
    )
    return f'<nav aria-label="Sections">{links}</nav>'


def _resource(name: str) -> str:
    return (resources.files("deepseek.deploy.report") / name).read_text(encoding="utf-8")
