"""The plug-in template renders, and what it makes passes its own tests.

copier renders with Jinja, names of files too, and so does this; jinja2 comes with torch.
"""

import os
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "templates" / "plugin"
SUFFIX = ".jinja"


def render(target, **given):
    """Render the template with its defaults and `given`; return the answers."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    questions = YAML(typ="safe").load((PLUGIN / "copier.yml").read_text())
    answers = {}
    for name, question in questions.items():
        if not name.startswith("_"):
            default = environment.from_string(question["default"]).render(answers)
            answers[name] = given.get(name, default)
    source = PLUGIN / questions["_subdirectory"]
    assert questions["_templates_suffix"] == SUFFIX
    for file in filter(Path.is_file, source.rglob("*")):
        name = environment.from_string(str(file.relative_to(source))).render(answers)
        place = target / name.removesuffix(SUFFIX)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text()
        if name.endswith(SUFFIX):
            text = environment.from_string(text).render(answers)
        place.write_text(text)
    return answers


@pytest.fixture
def plugin(tmp_path):
    folder = tmp_path / "plugin"
    answers = render(folder, name="deepseek-brightness", model="brightness")
    assert answers["package"] == "deepseek_brightness"
    # what `pip install -e` would leave beside the package
    info = folder / "src" / "deepseek_brightness-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepseek-brightness\nVersion: 0.1")
    entry = "[deepseek.plugins]\nbrightness = deepseek_brightness:register\n"
    (info / "entry_points.txt").write_text(entry)
    assert 'brightness = "deepseek_brightness:register"' in (folder / "pyproject.toml").read_text()
    return folder


def test_a_plugin_passes_its_own_tests(plugin):
    paths = [str(plugin / "src"), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(plugin / "tests")],
        cwd=plugin,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_what_is_rendered_is_formatted_and_linted(plugin):
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length=100", "."],
            cwd=plugin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
