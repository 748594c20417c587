"""`deepseek launch` itself: its options, its errors, and what --dry-run prints."""

import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from deepseek.cli.main import run
from deepseek.launch.workload import workloads

KUBERNETES = ("--on", "kubernetes", "--image", "x:1", "--dry-run")


def launch(*arguments):
    return run(["launch", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to launch"),
        (("trian",), "'trian' is no deepseek command"),
        (("launch", "train"), "'launch' is no deepseek command"),
        (("nowhere/train.py",), "script nowhere/train.py does not exist"),
        (("--nproc", "0", "train"), "--nproc=0"),
        (("--nnodes", "2", "train"), "--nnodes=2 without --rdzv-id"),
        (("--nnodes", "2", "--rdzv-id", "x", "train"), "without --rdzv-endpoint"),
        (("--nnodes", "3:2", "train"), "--nnodes=3:2"),
        (("--on", "slrum", "train"), "--on=slrum is no place"),
        (("--partition", "x", "train"), "--partition means nothing with --on=local"),
        (("--gpus", "1", "train"), "--gpus means nothing with --on=local"),
        (("--on", "slurm", "--image", "x", "train"), "--image means nothing with --on=slurm"),
        (("--on", "slurm", "--rdzv-endpoint", "x", "train"), "--rdzv-endpoint means nothing"),
        (("--on", "slurm", "--rdzv-id", "x", "train"), "--rdzv-id means nothing with --on=slurm"),
        (("--on", "kubernetes", "train"), "--on kubernetes without --image"),
        ((*KUBERNETES, "--nproc", "2", "--gpus", "3", "train"), "--nproc=2"),
        ((*KUBERNETES, "--memory", "1Gi", "train"), "/dev/shm"),
    ],
)
def test_bad_input_is_told_with_its_value_and_a_fix(capsys, arguments, words):
    assert launch(*arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Fix:" in told


def test_dry_run_shows_the_command_and_leaves_options_of_the_program_alone(capsys):
    assert launch("--nproc", 2, "--dry-run", "train", "a.yaml", "--resume", "--nproc=9") == 0
    out = capsys.readouterr().out
    assert "torch.distributed.run --nnodes 1 --nproc-per-node 2 " in out
    assert out.rstrip().endswith("-m deepseek.launch.worker train a.yaml --resume --nproc=9")


@pytest.mark.parametrize(
    ("arguments", "restarts"),
    [
        ((), "0"),
        (("--nnodes", "2", "--rdzv-id", "x", "--rdzv-endpoint", "127.0.0.1"), "3"),
        (("--supervise", "--rdzv-endpoint", "127.0.0.1"), "3"),
        (("--on", "slurm"), "3"),
        (("--on", "slurm", "--max-restarts", "1"), "1"),
        (("--max-restarts", "2"), "2"),
    ],
)
def test_workers_are_tried_again_where_hosts_come_and_go(capsys, arguments, restarts):
    assert launch(*arguments, "--dry-run", "train") == 0
    assert f"--max-restarts {restarts} " in capsys.readouterr().out


def test_each_launch_has_an_id_of_its_own(capsys):
    ids = set()
    for _ in range(2):
        launch("--dry-run", "train")
        words = capsys.readouterr().out.split()
        ids.add(words[words.index("--rdzv-id") + 1])
    assert len(ids) == 2


@pytest.mark.parametrize("kind", ["job", "jobset", "trainjob"])
def test_dry_run_prints_manifests_that_can_be_read_back(capsys, kind):
    assert launch(*KUBERNETES, "--nproc", 4, "--nnodes", 2, "--kind", kind, "train", "c.yaml") == 0
    out, err = capsys.readouterr()
    kinds = [entry["kind"].lower() for entry in YAML(typ="safe").load_all(out)]
    assert kind in kinds
    assert "warning: " in err  # no claim: runs go with their pods
    assert "&id" not in out


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        (["train"], ["train", "/etc/deepseek/model_config.yaml"]),
        (
            ["train", "--run-dir", "out", "trainer.epochs=3"],
            ["train", "/etc/deepseek/model_config.yaml", "--run-dir", "out", "trainer.epochs=3"],
        ),
        (["lr-range"], ["lr-range", "/etc/deepseek/model_config.yaml"]),
        (["train", "other.yaml"], ["train", "other.yaml"]),
        (["train", "--resume"], ["train", "--resume"]),
        (["runs"], ["runs"]),
        (["train.py"], ["train.py"]),
    ],
)
def test_the_default_configuration_goes_along(capsys, monkeypatch, tmp_path, program, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_config.yaml").write_text("name: mine\n")
    assert launch(*KUBERNETES, *program) == 0
    made = list(YAML(typ="safe").load_all(capsys.readouterr().out))
    configs = [entry["data"] for entry in made if entry["kind"] == "ConfigMap"]
    is_named = "/etc/deepseek/model_config.yaml" in wanted
    assert configs == [{"model_config.yaml": "name: mine\n"}] * is_named
    [workload] = workloads(made)
    assert workload.container["args"][-len(wanted) :] == wanted


def test_place_without_its_tool_is_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch("--on", "slurm", "train") == 2
    assert "sbatch is not on the path" in capsys.readouterr().err
    assert launch("--on", "kubernetes", "--image", "x:1", "--gpus", 1, "train") == 2
    assert "kubectl is not on the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--dry-run", "train"], [*KUBERNETES, "train", "x.yaml"]]
)
def test_help_and_dry_run_import_no_torch(arguments):
    code = (
        "import sys; from deepseek.cli.main import run; code = run(sys.argv[1:]);"
        " print('torch' in sys.modules, code)"
    )
    command = [sys.executable, "-c", code, "launch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False 0", done.stderr
