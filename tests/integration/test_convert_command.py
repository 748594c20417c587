"""`deepseek convert`: in, out, what it prints, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.cli.main import run
from deepseek.datasets import train_tokenizer
from deepseek.models import ModelEngine

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_DEBUG", raising=False)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=56, max_position_embeddings=26, num_labels=4,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained("bert")
    (tmp_path / "bert" / "tokenizer.json").write_text("{}")
    return model


def test_a_folder_goes_in_and_out_with_its_report(folder, capsys):
    assert run(["convert", "bert", "bert.bin", "--verify", "--table"]) == 0
    printed = capsys.readouterr().out
    assert "bert (huggingface) -> encoder" in printed
    assert "verified: largest difference" in printed
    assert "fused      bert.encoder.layer.0.attention.self.query.weight" in printed
    assert run(["convert", "bert.bin", "again", "--verify"]) == 0
    opened = transformers.AutoModelForSequenceClassification.from_pretrained("again").eval()
    tokens = torch.randint(1, 40, (2, 9))
    torch.testing.assert_close(opened(tokens).logits, folder(tokens).logits)
    found = ModelEngine.load("bert.bin").eval()(tokens)
    torch.testing.assert_close(found, folder(tokens).logits, atol=1e-5, rtol=0)


def test_files_of_a_tokenizer_go_along(tmp_path):
    assert run(["convert", "bert", "copy"]) == 0
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == "{}"
    assert "BertForSequenceClassification" in (tmp_path / "copy" / "README.md").read_text()


def test_a_state_dict_is_asked_about_and_written_in_another_form(folder, capsys, tmp_path):
    save_file(folder.state_dict(), "bert.safetensors")
    assert run(["convert", "bert.safetensors", "bert.bin"]) == 2
    assert "--set heads=1" in capsys.readouterr().err
    assert run(["convert", "bert.safetensors", "bert.bin", "--set", "heads=3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert {each["name"] for each in report["assumptions"]} == {"pad_token", "norm_eps"}
    assert run(["convert", "bert.bin", "back.safetensors"]) == 0
    back = load_file("back.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in folder.state_dict().items())


def test_pickles_need_a_word(folder, capsys):
    torch.save(folder.state_dict(), "bert.pt")
    assert run(["convert", "bert.pt", "bert.bin", "--set", "heads=3"]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert run(["convert", "bert.pt", "bert.bin", "--set", "heads=3", "--allow-pickle"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing", "x.bin"], 2, "neither a file, a folder nor"),
        (["bert", "x.bin", "--set", "heads"], 2, "--set heads is not KEY=VALUE"),
        (["bert", "x.bin", "--set", "heads=2"], 2, "says heads=2, config.json 3"),
        (["bert", "x.safetensors", "--to", "timm"], 2, "no model of another library"),
        (["bert", "bert"], 2, "is there already"),
    ],
)
def test_mistakes_are_named(arguments, code, message, capsys):
    assert run(["convert", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dtype", "bfloat16"], "--dtype"),
        (["--set", "heads=3", "--family", "bert"], "--family, --set"),
    ],
)
def test_options_of_foreign_weights_are_refused_for_a_model_file(options, named, capsys):
    assert run(["convert", "bert", "bert.bin"]) == 0
    assert run(["convert", "bert.bin", "out", *options]) == 2
    assert f"{named} would be ignored: bert.bin is a model file" in capsys.readouterr().err


def score_folder(**settings):
    """Write a folder of a model of texts with its tokenizer, and return both."""
    texts = ["shares rose sharply", "profit fell", "the bank said nothing"] * 10
    tokenizer = train_tokenizer(texts, kind="wordpiece", vocab_size=80)
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=16,
        pad_token_id=tokenizer.pad_token, **settings,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained("score")
    tokenizer.save("score")
    return model, tokenizer


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 2, "problem_type": "regression"}]
)
def test_a_folder_with_one_label_predicts_a_number(settings, capsys):
    model, tokenizer = score_folder(**settings)
    text = "profit rose sharply"
    with torch.no_grad():
        logits = model(torch.from_numpy(tokenizer.encode([text])[0])[None]).logits[0]
    assert run(["convert", "score", "score.bin"]) == 0
    capsys.readouterr()
    assert run(["predict", "score.bin", "--text", text, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    found = torch.tensor(row["value"]).reshape(-1)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)


def test_classes_that_do_not_exclude_each_other_are_told(capsys):
    score_folder(num_labels=3, problem_type="multi_label_classification")
    assert run(["convert", "score", "score.bin"]) == 0
    assert "do not exclude each other" in capsys.readouterr().out
