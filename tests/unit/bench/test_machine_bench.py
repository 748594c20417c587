from functools import partial

import pytest
import torch
from torch.utils.data import TensorDataset

from deepseek.bench import BenchResult, Rate, TrainingRate, bench_machine, write_page
from deepseek.bench.page import render_page
from deepseek.bench.standard_models import StandardModel, measure_training, standard_models
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer.estimate import estimate_step

SMALL = partial(
    StandardModel,
    batch="4 images",
    batch_size=4,
    make_model=lambda: ModelEngine("resnet", num_layers=8, width=4),
    make_data=lambda count: TensorDataset(torch.randn(count, 3, 8, 8), torch.arange(count) % 3),
)


def measure(tmp_path, matmul_tflops):
    return measure_training(SMALL("small"), 0.0, tmp_path / "run", matmul_tflops)


def test_the_flops_of_a_step_are_three_forward_passes(tmp_path):
    rate = measure(tmp_path, lambda precision: 0.5)
    engine = ModelEngine("resnet", num_layers=8, width=4, num_classes=3)
    forward = estimate_step(engine, (3, 8, 8)).forward_flops
    assert rate.num_steps == 1
    assert rate.tflops == pytest.approx(3e-12 * forward * rate.samples_per_s)
    assert rate.matmul_share == pytest.approx(rate.tflops / 0.5)
    assert rate.step_s == pytest.approx(4 / rate.samples_per_s)
    assert 0 <= rate.data_wait_share <= 1


def test_without_a_matrix_product_in_that_precision_there_is_no_share(tmp_path):
    assert measure(tmp_path, lambda precision: None).matmul_share is None


def test_the_standard_models_are_three_and_larger_on_an_accelerator():
    for kind in ("cpu", "cuda"):
        names = [standard.name for standard in standard_models(kind)]
        assert [name.split("-")[0] for name in names] == ["ResNet", "GPT", "ViT"]
    assert standard_models("cuda")[0].batch_size > standard_models("cpu")[0].batch_size


def test_a_bench_measures_what_it_can_and_says_what_not(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("deepseek.bench.machine_bench.measure_disk", refuse)
    began = []
    result = bench_machine(
        10.0, folder=tmp_path, device="cpu", models=[SMALL("small")], on_begin=began.append
    )
    names = [rate.name for rate in result.rates]
    left_out = dict(result.left_out)
    assert names[0] == "matmul fp32"
    assert {"memory", "JPEG decoding"} <= set(names)
    assert ("matmul bf16" in names) != ("matmul bf16" in left_out)
    assert left_out["disk"] == "the disk is full"
    assert "no time was left" in left_out["collectives"]
    # on a machine that others keep busy the ten seconds may be over
    trained = [rate.model for rate in result.training]
    assert trained == began[-1:] or "no time was left" in left_out["small"]
    assert result.as_json()["rates"][0]["name"] == "matmul fp32"


@pytest.fixture
def only_training(monkeypatch):
    monkeypatch.setattr("deepseek.bench.machine_bench._measure_machine", lambda *arguments: None)


def test_what_is_measured_on_the_processor_is_not_headed_by_a_graphics_card(
    tmp_path, monkeypatch, only_training
):
    found = {"processor": "a chip", "gpu": "a card"}
    monkeypatch.setattr("deepseek.bench.machine_bench.fingerprint", lambda: dict(found))
    result = bench_machine(10.0, folder=tmp_path, device="cpu", models=[])
    assert result.machine == {"processor": "a chip"}


def test_a_model_for_which_there_is_no_memory_is_left_out(tmp_path, only_training):
    def refuse():
        raise ConfigError("the model needs 90 GiB", fix="less")

    result = bench_machine(
        10.0, folder=tmp_path, device="cpu", models=[SMALL("large", make_model=refuse)]
    )
    assert result.left_out == [("large", "the model needs 90 GiB")]


def test_models_are_trained_where_the_machine_is_measured(tmp_path, monkeypatch, only_training):
    class Refusal:
        def __init__(self, *arguments, device, **settings):
            raise RuntimeError(f"asked for {device}")

    monkeypatch.setattr("deepseek.bench.standard_models.Trainer", Refusal)
    result = bench_machine(10.0, folder=tmp_path, device="cpu", models=[SMALL("small")])
    assert result.left_out == [("small", "asked for cpu")]


@pytest.mark.parametrize(
    ("budget_s", "env", "message"),
    [
        (9.0, {}, "budget=9s is not >= 10s"),
        (60.0, {"RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, budget_s, env, message):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        bench_machine(budget_s, folder=tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        bench_machine(folder=tmp_path / "absent")


RESULT = BenchResult(
    {"processor": "<chip>", "threads": "2", "isa": "AVX2", "torch": "2.14"},
    120.0,
    [Rate("matmul bf16", 2.0, "TFLOP/s", "8192 x 8192"), Rate("memory", 10.0, "GB/s", "copy")],
    [TrainingRate("GPT & co", "4 x 8 tokens", "bf16", 0.5, 8.0, 1.0, 0.5, 0.25, 7)],
    [("collectives", "no time was left")],
    ["load 9 on 2 CPU(s): others use the machine"],
)


def test_the_page_shows_rates_shares_and_what_is_missing_and_nothing_hostile():
    page = render_page(RESULT)
    for words in ("GPT &amp; co", "50%", "25%", "no time was left", "load 9 on 2", "8192 x 8192"):
        assert words in page
    assert "<chip>" not in page
    assert page.count("<svg") == 3  # training, products, memory
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_a_page_of_nothing_says_so():
    page = render_page(BenchResult(RESULT.machine, 10.0))
    assert "nothing was trained" in page
    assert "nothing was measured" in page


def test_a_page_is_an_html_file_in_a_folder_that_exists(tmp_path):
    write_page(RESULT, tmp_path / "bench.html")
    assert (tmp_path / "bench.html").read_text().startswith("<!doctype html>")
    for place in (tmp_path / "bench.svg", tmp_path / "absent" / "bench.html"):
        with pytest.raises(ConfigError, match=r"not an \.html file"):
            write_page(RESULT, place)
