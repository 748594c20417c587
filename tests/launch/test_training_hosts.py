"""A training on two hosts that are network namespaces goes on through what happens to them."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.launch.conftest import ADDRESSES, Launcher, wait_until

CONFIG = """
name: hosts
output: {output}
data: {{train: digits, transform: resize_8, channels: 1, val: 0.2}}
model: {{architecture: vit, args: {{image_size: 8, patch_size: 4, num_layers: 2, dim: 32, heads: 2,
  channels: 1}}}}
trainer: {{max_steps: {steps}, epochs: null, batch_size: 32, checkpoint_every: 1, log_every: 1,
  num_workers: 0, loggers: [jsonl], precision: fp32, eval_every: 1000, schedule: constant,
  warmup: 0,
  parallel: {{dp_replicate: auto, timeout_s: {timeout_s}, start_timeout_s: 60}}}}
"""


class Training:
    """One run on both hosts."""

    def __init__(self, hosts, steps=200, timeout_s=10.0):
        self.hosts = hosts
        self.run = hosts.shared / "runs/hosts-1"
        self.config = hosts.shared / "model_config.yaml"
        self.config.write_text(
            CONFIG.format(output=hosts.shared / "runs", steps=steps, timeout_s=timeout_s)
        )
        self.launchers = {host: self.start(host) for host in ADDRESSES}

    def start(self, host):
        endpoints = ",".join(f"{address}:29500" for address in ADDRESSES.values())
        launcher = Launcher(
            self.hosts.folder / host,
            ["--nproc", 1, "--nnodes", "1:2", "--rdzv-id", "job", "--rdzv-endpoint", endpoints,
             "--supervise", "train", self.config],
            prefix=["ip", "netns", "exec", self.hosts.name(host)],
            environment={"GLOO_SOCKET_IFNAME": self.hosts.device(host), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.hosts._launchers.append(launcher)
        return launcher

    def records(self):
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}") and '"train"' in line]

    def step(self):
        return max((record["step"] for record in self.records()), default=0)

    def wait_for_step(self, step, timeout_s=90):
        try:
            wait_until(lambda: self.step() >= step, timeout_s, f"step {step}")
        except AssertionError as error:
            told = [f"{host}: {each.err[-1500:]}" for host, each in self.launchers.items()]
            pytest.fail("\n".join([str(error), *told]))

    def events(self, kind):
        lines = (self.run / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="module")
def losses_of_one_process(tmp_path_factory):
    """What a run learns that nothing happens to."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "model_config.yaml").write_text(
        CONFIG.format(output=folder / "runs", steps=200, timeout_s=10.0)
    )
    subprocess.run(
        [sys.executable, "-m", "deepseek.cli.main", "train", "model_config.yaml"],
        cwd=folder, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = (Path(folder) / "runs/hosts-1/metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", ["a", pytest.param("b", marks=pytest.mark.long)])
def test_a_training_goes_on_with_fewer_hosts_and_the_same_batch(hosts, lost, losses_of_one_process):
    training = Training(hosts)
    training.wait_for_step(30)
    hosts.kill_all(lost)
    left = training.launchers["a" if lost == "b" else "b"]
    began, reached = time.monotonic(), training.step()
    training.wait_for_step(reached + 1)
    print(f"host {lost} died: the next step came after {time.monotonic() - began:.1f} s")
    assert left.wait(120) == 0, left.err[-2000:]
    assert [event["parallel"] for event in training.events("resume")] == ["none"]
    losses = [record["loss"] for record in training.records()]
    assert len(losses) == 200
    assert losses == pytest.approx(losses_of_one_process, abs=2e-3)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_halves_of_a_network_do_not_both_commit(hosts):
    training = Training(hosts, steps=3000)
    training.wait_for_step(30)
    hosts.set_link("down")
    reached = training.step()
    training.wait_for_step(reached + 20)
    time.sleep(60)  # the other half has led a rendezvous of its own by now
    hosts.set_link("up")
    training.wait_for_step(training.step() + 20)
    saves = [event["step"] for event in training.events("save")]
    # one course: after a save of a step, no half saves an earlier one, but from a resume on
    resumed = [event["step"] for event in training.events("resume")]
    drops = [b for a, b in itertools.pairwise(saves) if b <= a]
    assert len(drops) <= len(resumed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_bad_network_slows_a_training_and_nothing_else(hosts, losses_of_one_process):
    hosts.use_bad_cable(loss=0.05, delay_s=0.2)
    training = Training(hosts, steps=30, timeout_s=60.0)
    codes = [launcher.wait(800) for launcher in training.launchers.values()]
    assert codes == [0, 0], training.launchers["a"].err[-2000:]
    losses = [record["loss"] for record in training.records()]
    assert losses == pytest.approx(losses_of_one_process[:30], abs=2e-3)
