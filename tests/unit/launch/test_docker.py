"""Images, checked without a Docker engine: static rules, and their entry point run as it is."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from deepseek.launch.pod import PodOptions
from deepseek.version import __version__

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "docker" / name for name in ("Dockerfile", "Dockerfile.cpu", "Dockerfile.serve")]
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN(?!IZER)|API_?KEY|CREDENTIAL|BEGIN [A-Z ]*PRIVATE", re.I)

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def instructions(file):
    """Return (name, arguments) of each instruction."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def arguments(file, name):
    return [words for found, words in instructions(file) if found == name]


def test_base_images_are_pinned_to_a_patch_version(file):
    images = [words.split()[0] for words in arguments(file, "FROM")]
    assert len(images) == 2
    assert len(set(images)) == 1
    assert all(re.search(r":\d+\.\d+\.\d+-[\w.-]+$", image) for image in images)


def test_last_user_is_numeric_and_not_root(file):
    users = arguments(file, "USER")
    assert users == ["10001:10001"]
    assert instructions(file).index(("USER", users[0])) > instructions(file).index(
        ("COPY", "--from=build /opt/venv /opt/venv")
    )
    assert int(users[0].split(":")[0]) == PodOptions(name="x", image="x").user


def test_nothing_is_added_from_outside(file):
    assert arguments(file, "ADD") == []
    assert not [words for words in arguments(file, "RUN") if re.search(r"\b(curl|wget)\b", words)]


def test_no_secret_is_in_it(file):
    assert not SECRET.search(file.read_text())
    assert arguments(file, "ARG") == []


def test_only_what_the_package_is_made_of_is_copied(file):
    copied = {
        word
        for words in arguments(file, "COPY")
        if "--from" not in words
        for word in words.split()[:-1]
    }
    assert copied == {"docker/constraints.txt", "pyproject.toml", "README.md", "LICENSE", "src"}
    assert all((ROOT / path).exists() for path in copied)
    ignore = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied


def test_every_dependency_has_one_version(file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w.-]+", entry)[0].lower() for entry in project["dependencies"]}
    pinned = dict(
        line.lower().split("==") for line in (ROOT / "docker/constraints.txt").read_text().split()
    )
    assert wanted <= pinned.keys()
    assert all("--constraint" in words for words in arguments(file, "RUN") if "pip" in words)


def test_health_check_and_shell_are_off(file):
    assert arguments(file, "HEALTHCHECK") == ["NONE"]
    assert arguments(file, "CMD") == []


def test_entry_point_is_the_command_of_the_package_and_runs(file):
    [entry] = [json.loads(words) for words in arguments(file, "ENTRYPOINT")]
    [script] = entry_points(group="console_scripts", name=entry[0])
    assert script.value == "deepseek.cli.main:main"
    command = [Path(sys.executable).with_name(entry[0]), *entry[1:], "version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"deepseek {__version__}\n")


def test_versions_in_the_comments_are_those_of_the_package(file):
    assert f"deepseek:{__version__}" in file.read_text()
