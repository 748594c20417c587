"""`deepseek plan`, from its arguments to what it prints."""

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from ruamel.yaml import YAML

from deepseek.cli.plan import _make_cluster, plan
from deepseek.config import TrainerConfig
from deepseek.datasets import TokenDataset
from deepseek.errors import ConfigError
from deepseek.models import GPT
from deepseek.trainer import Trainer

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plan)


def run(*arguments):
    """Run the command; return its exit code."""
    with pytest.raises(SystemExit) as left:
        app(args=list(arguments))
    return left.value.code or 0


def run_json(capsys, *arguments, code=0):
    assert run(*arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_the_tables_name_model_plans_memory_and_error(capsys):
    assert run("llama2-7b", "--gpus", "8", "--tokens", "10B", "--price", "2.5", "--top", "3") == 0
    text = capsys.readouterr().out
    assert text.startswith("llama2-7b: 6.74B parameters")
    for words in ("fsdp8", "tok/s/GPU", "days", "USD", "of device", "MFU: 6 FLOPs", "at worst"):
        assert words in text
    assert sum(line.startswith(">") for line in text.splitlines()) == 3  # both tables, footnote


def test_json_has_the_plans_and_days_follow_from_the_rate(capsys):
    found = run_json(capsys, "llama2-7b", "--gpus", "8", "--tokens", "10B", "--price", "2")
    assert found["best"] in found["plans"]
    assert found["model"]["parameters"] == 6738415616
    for entry in found["plans"]:
        assert entry["step_s"] == pytest.approx(sum(entry["time_s"].values()))
        assert entry["peak_bytes"] == pytest.approx(sum(entry["memory_bytes"].values()))
        assert entry["peak_bytes"] <= found["memory_limit_bytes"]
        days = 10e9 / (8 * entry["tokens_per_s_per_gpu"]) / 86400
        assert entry["days"] == pytest.approx(days)
        assert entry["usd"] == pytest.approx(2 * 8 * 24 * days)


def test_one_plan_is_costed_exactly(capsys):
    from deepseek.planner import Cluster, ParallelPlan, find_gpu, find_shape, predict

    found = run_json(
        capsys, "gpt3-175b", "--gpu", "a100", "--plan", "dp16-tp8-pp8", "--batch", "1536",
        "--micro-batch", "1", "--recompute", "full", "--schedule", "1f1b", "--software", "megatron",
    )  # fmt: skip
    (entry,) = found["plans"]
    given = ParallelPlan(**entry["settings"])
    assert (given.dp_replicate, given.tp, given.pp, given.num_micro_batches) == (16, 8, 8, 96)
    cluster = Cluster(find_gpu("a100-80"), 1024)
    assert entry["step_s"] == predict(find_shape("gpt3-175b"), cluster, given).step_s


def test_a_plan_that_does_not_fit_is_shown_with_what_it_lacks(capsys):
    arguments = "llama3-70b", "--gpus", "8", "--offload", "none"
    assert run(*arguments) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "nothing fits; nearest: fsdp" in text
    assert "it would fit on b200" in text
    assert "16 x h100 are enough" in text
    found = run_json(capsys, *arguments, code=1)
    assert found["best"] is None
    assert found["nearest"]["peak_bytes"] > found["memory_limit_bytes"]
    with pytest.raises(ConfigError, match="nothing fits"):
        app(args=[*arguments, "--yaml"], standalone_mode=False)


def test_the_host_is_taken_where_nothing_fits_without(capsys):
    arguments = "llama3-70b", "--gpus", "8", "--batch", "64"
    assert run(*arguments, "--explain") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "offload parameters: 1,051 of 2,048 GiB of the memory of a node with 8 GPUs" in text
    assert "nothing fits without: nearest fsdp2-tp4" in text
    assert "offload none does not fit" in text
    found = run_json(capsys, *arguments)["best"]
    assert found["settings"]["offload"] == "parameters"
    assert found["host_bytes_of_a_node"] > 2**40
    run_json(capsys, *arguments, "--host-memory", "512GiB", code=1)
    assert run(*arguments, "--yaml") == 0
    assert "offload: parameters" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--host-memory: 'much' is no number of bytes"):
        app(args=[*arguments, "--host-memory", "much"], standalone_mode=False)


def test_gpus_that_do_not_fill_a_node_share_all_of_its_memory():
    options = {
        "gpu": "h100", "gpus_per_node": 8, "node_bandwidth": None, "price": None, "bandwidth": None,
        "host_memory": "512GiB",
    }  # fmt: skip
    assert _make_cluster(options, 4).host.memory_bytes == 128 * 2**30
    assert _make_cluster(options, 16).host.memory_bytes == 64 * 2**30


def test_frozen_weights_fit_where_trained_ones_do_not(capsys):
    arguments = "llama3-8b", "--gpus", "1", "--batch", "32", "--offload", "none"
    run_json(capsys, *arguments, code=1)
    assert run(*arguments, "--trainable", "20M") == 0
    text = capsys.readouterr().out
    assert "8.03B parameters (20M of them trained)" in text
    assert "4 where it is frozen" in text
    assert run(*arguments, "--trainable", "20M", "--yaml") == 0
    assert "# predicted with frozen weights, and these settings" in capsys.readouterr().out


def test_explain_says_why_families_and_changes_lost(capsys):
    arguments = ("llama2-7b", "--gpus", "8", "--batch", "256", "--explain")
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "chosen: fsdp8" in text
    assert "GiB too many, most of it optimizer" in text
    assert "slower: tensor-parallel sums" in text
    lost = run_json(capsys, *arguments)["lost"]
    assert {entry["what"] for entry in lost} >= {"dp", "tp", "fsdp-tp", "recompute full"}


@pytest.mark.parametrize("more", [[], ["--explain"]])
def test_yaml_is_read_by_the_configuration(more, capsys):
    assert run("llama2-7b", "--gpus", "8", "--batch", "256", "--yaml", *more) == 0
    out = capsys.readouterr().out
    assert ("# one change" in out) == bool(more)
    settings = YAML(typ="safe").load(out)["trainer"]
    assert settings["memory"] in ("off", "pointwise", "selective", "full")
    if "memory" not in TrainerConfig.model_fields:
        del settings["memory"]
    config = TrainerConfig.model_validate(settings)
    assert config.batch_size == 256
    assert config.parallel.describe() == "fsdp8"


@pytest.mark.long
def test_yaml_trains_with_a_number_of_bytes(capsys, tmp_path):
    assert run("gpt2-xl", "--gpus", "1", "--batch", "4", "--yaml") == 0
    settings = YAML(typ="safe").load(capsys.readouterr().out)["trainer"]
    assert settings["graph"] == "static"
    model = GPT(context_length=16, num_layers=1, dim=32, heads=2)
    data = TokenDataset(np.arange(8 * 16 + 1) % 20, 16, [str(number) for number in range(20)])
    settings |= {"memory": "4GiB", "device": "cpu", "max_steps": 2, "num_workers": 0}
    trainer = Trainer(model, data, run_dir=tmp_path / "run", loggers=["jsonl"], **settings)
    trainer.fit()
    assert trainer.assembly.step.graph.num_compiled == 2


def test_measured_links_change_the_plan(capsys, tmp_path):
    path = tmp_path / "measured.json"
    rows = [{"collective": "all_reduce", "bus_gbs": 5.0}]
    path.write_text(json.dumps({"num_hosts": 8, "rows": rows}))
    arguments = ("gpt3-20b", "--gpus", "64", "--batch", "512")
    usual = run_json(capsys, *arguments)["best"]
    slow = run_json(capsys, *arguments, "--bandwidth", str(path))["best"]
    by_option = run_json(capsys, *arguments, "--node-bandwidth", "6.4516129GB/s")["best"]
    assert slow["step_s"] > usual["step_s"]
    assert slow["step_s"] == pytest.approx(by_option["step_s"], rel=1e-6)


def test_what_is_weak_is_said_with_the_error(capsys):
    fp8 = run_json(capsys, "llama3-8b", "--gpus", "64", "--precision", "fp8")
    assert "5 to 15 %" in fp8["error"]
    long = run_json(capsys, "llama3-8b", "--gpus", "64", "--seq", "131072", "--plan", "fsdp8-cp8")
    assert "No published row has cp" in long["error"]
    assert "cp" not in run_json(capsys, "llama3-8b", "--gpus", "64")["error"]


def test_a_batch_is_found_for_gpus_that_are_no_power_of_two(capsys):
    found = run_json(capsys, "gpt3-20b", "--gpus", "24")
    assert found["batch_size"] == 3 * 512  # sequences of 2,048: 3.1 of at most 4.2M tokens


def test_a_gpu_without_bf16_is_planned_in_fp16(capsys):
    assert run("gpt2-124m", "--gpus", "4", "--gpu", "v100", "--batch", "64", "--top", "1") == 0
    assert "fp16 (the GPU has no bf16)" in capsys.readouterr().out


def test_little_memory_is_shown_in_mib(capsys):
    sizes = "layers=2,dim=64,heads=4,vocab=512,seq=64"
    assert run(sizes, "--gpus", "1", "--batch", "8", "--recompute", "none", "--top", "1") == 0
    text = capsys.readouterr().out
    assert "MiB of the fullest device" in text
    assert run(sizes, "--gpus", "1", "--batch", "8", "--recompute", "none", "--yaml") == 0
    text = capsys.readouterr().out
    assert " MiB, MFU" in text
    assert 'memory: "off"' in text  # false, to a reader of YAML 1.1


def test_the_page_is_written(capsys, tmp_path):
    page = tmp_path / "plan.html"
    assert run("gpt2-124m", "--gpus", "2", "--batch", "64", "--html", str(page)) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.rstrip().endswith(str(page))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama2-7b"], "--gpus is not given"),
        (["llama2-7", "--gpus", "8"], "did you mean"),
        (["llama2-7b", "--gpus", "8", "--gpu", "h1000"], "gpu='h1000'"),
        (["llama2-7b", "--gpus", "8", "--precision", "int8"], "--precision int8"),
        (["llama2-7b", "--gpus", "8", "--schedule", "1f2b"], "--schedule 1f2b"),
        (["llama2-7b", "--gpus", "8", "--recompute", "some"], "--recompute some"),
        (["llama2-7b", "--gpus", "8", "--software", "x"], "--software x"),
        (["llama2-7b", "--gpus", "8", "--plan", "dp4"], "needs 4 GPUs and --gpus=8"),
        (["llama2-7b", "--gpus", "8", "--plan", "tp7-dp1"], "needs 7 GPUs"),
        (["llama2-7b", "--plan", "tp3"], "tp=3 does not divide heads=32"),
        (["llama2-7b", "--gpus", "8", "--tokens", "many"], "--tokens many"),
        (["llama2-7b", "--gpus", "8", "--node-bandwidth", "400"], "--node-bandwidth 400"),
        (["llama2-7b", "--gpus", "8", "--bandwidth", "absent.json"], "--bandwidth absent.json"),
        (["llama2-7b", "--gpus", "8", "--html", "page.txt"], "--html page.txt"),
        (
            ["llama2-7b", "--gpus", "8", "--bandwidth", "a.json", "--node-bandwidth", "1GB/s"],
            "both say how fast",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_value_and_a_fix(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        app(args=arguments, standalone_mode=False)
    assert caught.value.fix


def test_it_plans_where_torch_is_not_installed(tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'numpy'): sys.modules[name] = None\n"
        "from deepseek.cli.main import app\n"
        f"app(['plan', 'gpt3-20b', '--gpus', '64', '--explain', '--html', r'{tmp_path}/p.html'],"
        " standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gpt3-20b" in done.stdout
