import json
import os
from pathlib import Path

import pytest

from deepseek.cli.main import run
from deepseek.errors import ConfigError, DataError, DeepSeekError
from deepseek.reproduce import Figure, find_paper, read_papers, reproduce

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("DEEPSEEK_TEST_DATA", ROOT.parent / "shared" / "data"))
PAPER = """\
title: On Testing
authors: Nobody
year: 2020
figures:
  - {name: share, expected: 50, unit: "%", tolerance: 1, source: table 1, file: found.json,
     key: rows.1.share, factor: 100}
commands:
  - [python, "{here}/work.py", "{run}/found.json", "{data}"]
data:
  - {name: the numbers, path: numbers.txt, source: example.org}
time: seconds
"""
RUN = "{date: d, values: [1, 2], machine: m, time: t}"
WORK = """\
import json, pathlib, sys
share = float(pathlib.Path(sys.argv[2], "numbers.txt").read_text())
print("at work")
pathlib.Path(sys.argv[1]).write_text(json.dumps({"rows": [{"share": 0}, {"share": share}]}))
"""


@pytest.fixture
def papers(tmp_path):
    folder = tmp_path / "reproduce"
    (folder / "testing").mkdir(parents=True)
    (folder / "testing" / "paper.yaml").write_text(PAPER)
    (folder / "testing" / "work.py").write_text(WORK)
    return folder


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "numbers.txt").write_text("0.495")
    return folder


def run_testing(papers, data, run_dir, say=lambda line: None):
    return reproduce(
        "testing", read_papers(papers)["testing"], papers, data, run_dir, say
    )  # fmt: skip


def test_a_figure_within_its_tolerance_is_reached_and_written_down(papers, data, tmp_path):
    said = []
    found = run_testing(papers, data, tmp_path / "run", said.append)
    (outcome,) = found.outcomes
    assert found.is_reached
    assert outcome.reached == pytest.approx(49.5)
    body = json.loads((tmp_path / "run" / "result.json").read_text())
    assert body["is_reached"]
    assert body["figures"][0]["published"] == 50
    assert said[1] == "at work"
    assert (tmp_path / "run" / "log.txt").read_text().splitlines() == said


def test_a_figure_that_is_no_number_is_null_in_json(papers, data, tmp_path, capsys):
    (data / "numbers.txt").write_text("nan")
    found = run_testing(papers, data, tmp_path / "run")
    assert not found.is_reached
    assert json.dumps(found.as_json(), allow_nan=False)
    body = json.loads((tmp_path / "run" / "result.json").read_text())
    assert body["figures"][0]["reached"] is None


def test_the_command_prints_the_verdict_and_exits_by_it(papers, data, tmp_path, capsys):
    arguments = ["reproduce", "testing", "--from", str(papers), "--data", str(data), "--run-dir"]
    assert run([*arguments, str(tmp_path / "good")]) == 0
    assert "reached  49.5 %: reached" in capsys.readouterr().out
    (data / "numbers.txt").write_text("0.6")
    assert run([*arguments, str(tmp_path / "bad"), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["is_reached"]
    assert run([*arguments, str(tmp_path / "bad")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_folder_of_data_comes_from_the_environment(papers, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_TEST_DATA", str(data))
    assert run(["reproduce", "testing"]) == 0
    assert (tmp_path / "runs" / "reproduce-testing-1" / "result.json").is_file()


def test_missing_data_are_named_with_where_to_get_them(papers, tmp_path):
    with pytest.raises(DataError, match=r"needs data: the numbers from example\.org"):
        run_testing(papers, None, tmp_path / "run")
    with pytest.raises(DataError, match=r"no numbers\.txt in") as caught:
        run_testing(papers, tmp_path, tmp_path / "run")
    assert caught.value.fix is not None
    assert "get the numbers from example.org" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_command_that_fails_is_an_error_with_its_code(papers, data, tmp_path):
    (papers / "testing" / "work.py").write_text("import sys; print('no luck'); sys.exit(7)")
    with pytest.raises(DeepSeekError, match="ended with code 7"):
        run_testing(papers, data, tmp_path / "run")
    assert "no luck" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_without_its_figure_is_an_error(papers, data, tmp_path):
    (papers / "testing" / "work.py").write_text("")
    with pytest.raises(DeepSeekError, match="left no figure"):
        run_testing(papers, data, tmp_path / "run")
    (papers / "testing" / "work.py").write_text(WORK.replace('"rows"', '"columns"'))
    with pytest.raises(DeepSeekError, match=r"no number called rows\.1\.share"):
        run_testing(papers, data, tmp_path / "again")


def test_of_json_lines_the_last_with_the_key_counts(papers, data, tmp_path):
    work = "import pathlib, sys; pathlib.Path(sys.argv[1] + 'l').write_text({!r})"
    lines = '{"share": 0.1}\n{"share": 0.5}\n{"other": 1}\n'
    (papers / "testing" / "work.py").write_text(work.format(lines))
    text = PAPER.replace("found.json,", "found.jsonl,").replace("rows.1.share", "share")
    (papers / "testing" / "paper.yaml").write_text(text)
    (outcome,) = run_testing(papers, data, tmp_path / "run").outcomes
    assert outcome.reached == 50


@pytest.mark.parametrize(
    ("direction", "worse", "better"), [("at_least", 89.4, 97), ("at_most", 90.6, 2)]
)
def test_a_direction_lets_better_figures_pass(direction, worse, better):
    figure = Figure(
        name="x", expected=90, tolerance=0.5, direction=direction, source="s", file="f", key="k"
    )
    assert not figure.is_reached(worse)
    assert figure.is_reached(better)
    assert not figure.is_reached(float("nan"))


def test_an_equal_figure_is_equal_in_its_decimals():
    figure = Figure(name="x", expected=91.73, unit="%", source="s", file="f", key="k")
    assert figure.is_reached(100 * 0.9173)
    assert not figure.is_reached(91.72)
    assert figure.describe() == "91.73 %"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: On Testing", "titles: On Testing", "titles"),
        ("[python,", "[rm,", "'rm' is neither of deepseek, python"),
        ("time: seconds", f"time: seconds\nmeasured: [{RUN}]", "2 values of d for 1 figures"),
        ("title: On Testing", "title: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_by_name(papers, old, new, message):
    (papers / "testing" / "paper.yaml").write_text(PAPER.replace(old, new))
    with pytest.raises(ConfigError, match=r"paper\.yaml") as caught:
        read_papers(papers)
    assert message in caught.value.message


def test_unknown_braces_are_refused(papers, data, tmp_path):
    (papers / "testing" / "paper.yaml").write_text(PAPER.replace("{data}", "{datum}"))
    with pytest.raises(ConfigError, match="braces around 'datum'"):
        run_testing(papers, data, tmp_path / "run")


def test_without_a_clone_the_error_says_to_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce"]) == 2
    assert "git clone" in capsys.readouterr().err


def test_a_name_that_is_not_there_has_a_nearest_one():
    papers = read_papers(ROOT / "reproduce")
    with pytest.raises(ConfigError) as caught:
        find_paper("korthikant", papers)
    assert 'did you mean "korthikanti"' in str(caught.value.fix)


def test_every_paper_of_the_repository_is_whole(capsys):
    papers = read_papers(ROOT / "reproduce")
    assert {"resnet20", "resnet32", "resnet44", "resnet56", "resnet20_scratch", "resnet20_cpu",
            "cifar10_speed", "vit_tiny_cifar10", "hippocampus", "phrasebank", "shakespeare_char",
            "korthikanti"} == set(papers)  # fmt: skip
    for name, paper in papers.items():
        here = ROOT / "reproduce" / name
        assert (here / "README.md").is_file()
        for run_made in paper.measured:
            assert not run_made.log or (here / run_made.log).is_file()
        for word in (word for command in paper.commands for word in command):
            if word.startswith(("{here}", "{papers}")):
                path = word.format(here=here, papers=here.parent)
                assert Path(path).is_file(), path
    assert run(["reproduce", "--from", str(ROOT / "reproduce")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(papers)


def test_the_savings_of_selective_recomputation_are_those_of_the_paper(tmp_path):
    papers = read_papers(ROOT / "reproduce")
    found = reproduce(
        "korthikanti", papers["korthikanti"], ROOT / "reproduce", None, tmp_path / "run"
    )
    assert found.is_reached, found.outcomes


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56"])
def test_published_weights_have_their_published_accuracy_to_the_picture(name, tmp_path):
    paper = read_papers(ROOT / "reproduce")[name]
    if not all((DATA / need.path).exists() for need in paper.data):
        pytest.skip(f"no CIFAR-10 or no weights in {DATA}")
    found = reproduce(name, paper, ROOT / "reproduce", DATA, tmp_path / "run")
    assert found.is_reached, found.outcomes
