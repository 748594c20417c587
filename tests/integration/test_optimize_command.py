"""`deepseek optimize`, in as few trials as there can be."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepseek.cli.main import run
from deepseek.datasets import ImageDataset
from deepseek.deploy.optimization import search
from deepseek.models import ModelEngine, VisionTransformer


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_DEBUG", raising=False)
    monkeypatch.setattr(search, "MOST_TIMING_S", 0.1)
    torch.manual_seed(0)
    module = VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1
    )
    engine = ModelEngine.wrap(module)
    engine.bind(ImageDataset("digits", transform="resize_8", channels=1).spec)
    engine.save("digits.bin")
    return "digits.bin"


def test_a_model_and_data_become_a_file_and_a_report(model, tmp_path, capsys):
    options = [
        "--runtime",
        "eager",
        "--precision",
        "fp32",
        "--max-samples",
        "96",
        "--sparsity",
        "none",
    ]
    command = ["optimize", model, "--data", "digits", "--tolerance", "1%", "--budget", "9m"]
    assert run([*command, *options, "--out", "fast"]) == 0
    printed = capsys.readouterr().out
    assert "1 candidates for latency in 9m, on 96 of 1797 labelled samples" in printed
    assert "accuracy may drop by 1.00%" in printed
    assert f"report: {tmp_path / 'fast' / 'report.html'}" in printed
    assert {path.name for path in (tmp_path / "fast").iterdir()} == {
        "best.bin", "best.bin.json", "log.txt", "report.html", "report.json", "search.json",
        "trials.jsonl",
    }  # fmt: skip
    assert run([*command, *options, "--out", "fast", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["best"], body["tolerance"]) == ("eager fp32", 0.01)


def test_pictures_without_classes_and_wrong_options(model, tmp_path, capsys):
    digits = ImageDataset("digits", channels=1)
    (tmp_path / "pictures").mkdir()
    for at in range(3):
        digits.image(at).save(tmp_path / "pictures" / f"{at}.png")
    assert run(["optimize", model, "--data", "pictures"]) == 3
    assert "3 samples" in capsys.readouterr().err
    for option, value, message in (
        ("--tolerance", "50", "tolerance='50' is not a share"),
        ("--budget", "later", "budget='later' is not a time"),
        ("--target", "speed", "target='speed' is not known"),
        ("--runtime", "tensorflow", "unknown runtime 'tensorflow'"),
    ):
        assert run(["optimize", model, "--data", "digits", option, value]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_of_parquet_has_labels(model, tmp_path, capsys):
    digits = ImageDataset("digits", channels=1)
    content = io.BytesIO()
    digits.image(0).save(content, "PNG")
    pictures = [{"bytes": content.getvalue(), "path": None}] * 2
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": pictures, "label": ["0", "zero"]}), "table/0.parquet")
    assert run(["optimize", model, "--data", "table"]) == 3
    assert "label 'zero' is none of the 10 classes" in capsys.readouterr().err
