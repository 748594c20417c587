"""`deepseek finance`, on a tiny encoder."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import run
from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.models import ModelEngine

LETTERS = "zabcdefghijklmnopqrstuvwxyz0123456789"
NEWS = [f"$NVDA rose by {n}.5% in the quarter" for n in range(40)]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([LETTERS, " ".join(LETTERS), "$ % . #"], "wordpiece", 120)
    data = TextDataset(
        NEWS, "masked_language_modelling", tokenizer=tokenizer, sequence_length=32, cache="off"
    )
    engine = ModelEngine(
        "encoder", vocab_size=tokenizer.vocab_size, context_length=32, num_layers=1, dim=16,
        heads=2, outputs="vocabulary",
    )  # fmt: skip
    engine.bind(data.spec)
    engine.save("model.bin")
    (tmp_path / "news.txt").write_text("\n".join(NEWS))
    (tmp_path / "cats.txt").write_text("\n".join(f"cat {n} sat on a mat" for n in range(40)))


@pytest.mark.usefixtures("model")
def test_a_vocabulary_grows_and_the_model_learns_the_domain(capsys):
    assert run(["finance", "grow-vocabulary", "model.bin", "grown", "--corpus", "news.txt"]) == 0
    out = capsys.readouterr().out
    assert "6 new tokens" in out
    assert "fewer than 1000: 6 terms of the corpus are of several tokens and were seen 5" in out
    assert "Fewer than asked for: 6 terms" in Path("grown/vocabulary.md").read_text()
    command = ["finance", "adapt", "grown/model.bin", "adapted", "--corpus", "news.txt"]
    command += ["--general", "cats.txt", "--replay", "0.2", "--epochs", "2", "--batch-size", "8"]
    assert run([*command, "--sequence-length", "32", "--lr", "1e-3", "--json"]) == 0
    out, told = capsys.readouterr()
    for what in ("before, domain", "before, general", "after, domain", "after, general"):
        assert f"measuring perplexity ({what}): 2 samples" in told
    found = json.loads(out)  # and nothing beside it
    assert found["perplexity"]["after"]["domain"] < found["perplexity"]["before"]["domain"]
    assert found["num_general"] > 0
    assert ModelEngine.load("adapted/task.bin").config["outputs"] == "sequence"


@pytest.mark.usefixtures("model")
def test_mistakes_are_said_without_a_traceback(capsys):
    wrong = ["finance", "grow-vocabulary", "model.bin", "grown", "--corpus"]
    assert run([*wrong, "nowhere.txt"]) != 0
    assert "nowhere.txt does not exist" in capsys.readouterr().err
    assert run([*wrong, "news.txt", "--init", "auxiliary"]) == 2
    assert "init='auxiliary' with vectors=None" in capsys.readouterr().err


@pytest.mark.usefixtures("model")
def test_a_time_that_cannot_be_read_is_said_before_anything_is_trained(capsys):
    command = ["finance", "adapt", "model.bin", "adapted", "--corpus", "news.txt"]
    command += ["--sequence-length", "32", "--head-steps", "2"]
    assert run([*command, "--time-budget", "20min"]) == 2
    assert 'time_budget="20min": expected a time above 0' in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("model")
def test_a_run_of_another_corpus_is_not_resumed(capsys):
    command = ["finance", "adapt", "model.bin", "adapted", "--max-steps", "1"]
    command += ["--sequence-length", "32", "--corpus"]
    assert run([*command, "news.txt"]) == 0
    Path("other.txt").write_text("\n".join(NEWS).replace("rose", "fell"))
    assert run([*command, "other.txt", "--resume"]) == 2
    assert "which are not these 38" in capsys.readouterr().err
    assert run([*command, "news.txt", "--resume"]) == 0


@pytest.mark.usefixtures("model")
def test_two_adaptations_in_one_directory_have_runs_of_their_own(capsys):
    def adapt(*options):
        command = ["finance", "adapt", "model.bin", "adapted", "--corpus", "news.txt"]
        return run([*command, "--sequence-length", "32", "--max-steps", "1", *options])

    on_the_cpu = ["--device", "cpu", "--precision", "bf16"]
    assert adapt("--name", "news", *on_the_cpu) == 0
    settings = json.loads(Path("runs/news-1/config.yaml").read_text())["trainer"]
    assert (settings["device"], settings["precision"]) == ("cpu", "bf16")
    assert adapt("--run-dir", "placed", "--head-steps", "0") == 0
    assert Path("placed/model.bin").exists()
    assert adapt("--name", "news", "--resume") == 0  # not the newest, which is in its own folder
    assert adapt("--run-dir", "placed", "--resume") == 0
    assert sorted(each.name for each in Path("runs").iterdir() if each.is_dir()) == ["news-1"]
    assert adapt("--run-dir", "placed") == 2
    assert "run_dir='placed' holds a run already" in capsys.readouterr().err
    assert adapt("--precision", "half") == 2
