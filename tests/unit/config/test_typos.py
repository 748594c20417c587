"""200 typing errors, one at a time: all rejected, the right key suggested, at the right place."""

import random
import string

import pytest

from deepseek.config import ConfigFileError, RunConfig, load_config
from deepseek.config.schema import dump_config
from deepseek.config.validation import sections

COUNT = 200
LEVELS = {(): RunConfig, **{(name,): cls for name, cls in sections(RunConfig).items()}}


def mistyped(key, rng):
    """Return `key` with one letter dropped, doubled, swapped or replaced."""
    at = rng.randrange(len(key))
    kind = rng.choice(["drop", "double", "swap", "replace"])
    if kind == "drop" and len(key) > 1:
        return key[:at] + key[at + 1 :]
    if kind == "swap" and at + 1 < len(key):
        return key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    if kind == "replace":
        return key[:at] + rng.choice(string.ascii_lowercase) + key[at + 1 :]
    return key[:at] + key[at] + key[at:]


def typos():
    """Yield (path of the right key, the wrong key), the same 200 each time."""
    rng = random.Random(2026)
    keys = [(*level, key) for level, cls in LEVELS.items() for key in cls.model_fields]
    found = set()
    while len(found) < COUNT:
        path = keys[len(found) % len(keys)] if len(found) < len(keys) else rng.choice(keys)
        wrong = mistyped(path[-1], rng)
        known = LEVELS[path[:-1]].model_fields
        if wrong in known or not wrong or (path, wrong) in found or wrong in ("y", "n"):
            continue
        found.add((path, wrong))
        yield path, wrong


@pytest.fixture
def lines():
    values = {"data": {"train": "digits"}, "model": {"architecture": "vit"}}
    return dump_config(RunConfig.model_validate(values)).splitlines()


def line_of(lines, path):
    """Return the index and column of the key at `path` in a dumped configuration."""
    start = 0 if len(path) == 1 else lines.index(f"{path[0]}:") + 1
    indent = "  " * (len(path) - 1)
    for index in range(start, len(lines)):
        if lines[index].startswith(f"{indent}{path[-1]}:"):
            return index, len(indent)
    raise AssertionError(path)


def test_every_typo_is_found_at_its_place_and_nearly_all_are_understood(tmp_path, lines):
    file = tmp_path / "model_config.yaml"
    understood, missed = 0, []
    for path, wrong in typos():
        index, column = line_of(lines, path)
        edited = list(lines)
        edited[index] = edited[index].replace(path[-1], wrong, 1)
        file.write_text("\n".join(edited) + "\n")
        with pytest.raises(ConfigFileError) as caught:
            load_config(file)
        problems = [p for p in caught.value.problems if p.code == "unknown-key"]
        assert [(p.line, p.column) for p in problems] == [(index + 1, column + 1)], (path, wrong)
        if f"`{path[-1]}`" in problems[0].hint:
            understood += 1
        else:
            missed.append((".".join(path), wrong, problems[0].hint[:40]))
    print(f"{understood} of {COUNT} understood; missed: {missed}")
    assert understood >= 0.95 * COUNT, missed


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr: 1e-3", "trainer.lr"),
        ("epochs: 3", "trainer.epochs"),
        ("architecture: vit", "model.architecture"),
        ("learning_rate: 1e-3", "trainer.lr"),
        ("num_epochs: 3", "trainer.epochs"),
    ],
)
def test_a_key_in_the_wrong_section_is_sent_where_it_belongs(tmp_path, lines, written, meant):
    file = tmp_path / "model_config.yaml"
    file.write_text("\n".join([written, *lines]))
    with pytest.raises(ConfigFileError) as caught:
        load_config(file)
    assert f"did you mean `{meant}`?" in str(caught.value)
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (1, 1)
