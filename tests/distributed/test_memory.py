"""Memory policies under every axis: the same learning, and less kept."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.budgets import predict, refuse_bytes
from tests.distributed.ranks import run_ranks, train
from tests.distributed.test_layouts import compare

from deepseek.memory import host_copies, saved
from deepseek.trainer import Callback

LAYOUTS = {"dp2": 2, "fsdp2": 2, "tp2": 2, "pp2": 2, "cp2": 2}
MIXTURES = {"dp2-tp2": 4, "fsdp2-pp2": 4, "tp2-pp2": 4, "fsdp2-cp2": 4}
SCHEDULES = ("interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process that keeps everything."""
    run = tmp_path_factory.mktemp("gpt") / "run"
    return train("gpt", run), load_file(run / "model.bin")


class Copies(Callback):
    """Counts the tensors that have waited on the host."""

    num = 0

    def on_step_end(self, trainer, metrics):
        """Look at the last micro-batch."""
        self.num += trainer.assembly.step.graph.memory.copies.num_copies


def train_with_copies(run_dir, **settings):
    host_copies.MIN_COPIED_BYTES = saved.MIN_BYTES = 1  # for a model as small as this
    copies = Copies()
    return train("gpt", run_dir, callbacks=[copies], **settings), copies.num


def train_all_small(run_dir, **settings):
    saved.MIN_BYTES = 1  # of a model as small as this everything is looked at
    return train("gpt", run_dir, **settings)


def often(*values):
    """These are tried in every run of the tests, the others in the long ones."""
    return [v if v in QUICK else pytest.param(*v, marks=pytest.mark.long) for v in values]


QUICK = {
    ("fsdp2", "selective"), ("fsdp2", "full"), ("tp2", "selective"), ("pp2", "selective"),
    ("zbv_zero_bubble", "selective"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "memory"), often(*((each, m) for each in LAYOUTS for m in ("selective", "full")))
)
def test_a_policy_changes_nothing_that_a_layout_learns(layout, memory, reference, tmp_path):
    run = tmp_path / "run"
    found = run_ranks(
        LAYOUTS[layout], train, "gpt", run, parallel=layout, memory=memory, folder=tmp_path / "r"
    )
    compare(reference, found[0], run)


@pytest.mark.parametrize(
    "layout",
    ["tp2", *(pytest.param(each, marks=pytest.mark.long) for each in ("fsdp2-tp2", "tp2-pp2"))],
)
def test_ranks_of_tp_learn_the_same_bits_in_bf16(layout, tmp_path):
    settings = {"parallel": layout, "precision": "bf16", "dropout": 0.1}
    size = (LAYOUTS | MIXTURES | {"fsdp2-tp2": 4})[layout]
    runs = {}
    for memory in ("off", "selective"):
        run = tmp_path / memory
        found = run_ranks(
            size, train_all_small, run, memory=memory, folder=tmp_path / f"{memory}_ranks",
            **settings,
        )  # fmt: skip
        runs[memory] = found[0][0], load_file(run / "model.bin")
    assert runs["selective"][0] == runs["off"][0]
    for name, weight in runs["off"][1].items():
        assert torch.equal(runs["selective"][1][name], weight), name


@pytest.mark.long
@pytest.mark.parametrize("memory", ["pointwise", "selective", "full", 0.5])
@pytest.mark.parametrize("layout", MIXTURES)
def test_a_policy_changes_nothing_that_a_mixture_learns(layout, memory, reference, tmp_path):
    run = tmp_path / "run"
    found = run_ranks(
        MIXTURES[layout], train, "gpt", run, parallel=layout, memory=memory, folder=tmp_path / "r"
    )
    compare(reference, found[0], run)


@pytest.mark.parametrize(
    ("schedule", "memory"),
    often(*((s, m) for s in SCHEDULES for m in ("pointwise", "selective", "full", 0.4))),
)
def test_a_policy_changes_nothing_that_a_pipeline_learns(schedule, memory, reference, tmp_path):
    run = tmp_path / "run"
    settings = {"parallel": {"pp": 2, "schedule": schedule}, "memory": memory}
    found = run_ranks(2, train_all_small, run, folder=tmp_path / "ranks", **settings)
    compare(reference, found[0], run)


@pytest.mark.parametrize(
    "layout",
    [
        *("fsdp2", "tp2", "pp2"),
        *(pytest.param(each, marks=pytest.mark.long) for each in ("dp2", "cp2", *MIXTURES)),
    ],
)
def test_a_loss_in_chunks_changes_nothing_that_a_layout_learns(layout, reference, tmp_path):
    run, num = tmp_path / "run", (LAYOUTS | MIXTURES)[layout]
    found = run_ranks(num, train, "gpt", run, parallel=layout, loss_chunks=3, folder=tmp_path / "r")
    compare(reference, found[0], run)


@pytest.mark.long
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_loss_in_chunks_changes_nothing_that_a_pipeline_learns(schedule, reference, tmp_path):
    plan = {"pp": 2, "schedule": schedule}
    settings = {"parallel": plan, "loss_chunks": 3, "folder": tmp_path / "ranks"}
    found = run_ranks(2, train, "gpt", tmp_path / "run", **settings)
    compare(reference, found[0], tmp_path / "run")


@pytest.mark.parametrize(
    ("layout", "memory"),
    [
        ("tp2", "pointwise"),
        *(
            pytest.param(layout, memory, marks=pytest.mark.long)
            for layout in (*LAYOUTS, *MIXTURES)
            for memory in ("off", "selective", 0.4)
        ),
    ],
)
def test_what_waits_on_the_host_changes_nothing_that_a_layout_learns(
    layout, memory, reference, tmp_path
):
    run, num = tmp_path / "run", (LAYOUTS | MIXTURES)[layout]
    settings = {"parallel": layout, "memory": memory, "offload": "activations"}
    found = run_ranks(num, train_with_copies, run, folder=tmp_path / "r", **settings)
    assert all(num_copies > 0 for _, num_copies in found)
    compare(reference, found[0][0], run)


@pytest.mark.parametrize(
    "layouts", [("fsdp2", "pp2"), pytest.param(("tp2", "cp2", "dp2"), marks=pytest.mark.long)]
)
def test_bytes_that_are_too_few_are_refused_on_every_axis(layouts, tmp_path):
    found = run_ranks(2, refuse_bytes, layouts, "24MiB", tmp_path / "run", folder=tmp_path / "r")
    assert found[0] == found[1]  # nobody waits for the other
    for layout in layouts:
        assert found[0][layout].startswith("memory=24MiB cannot be kept to: the least is ")
        assert "on rank " in found[0][layout]


RUNS = {
    "fsdp": {"parallel": "fsdp2", "grad_accum_steps": 2},
    "tp": {"parallel": "tp2", "memory": "selective"},
    "pp": {"parallel": {"pp": 2, "micro_batches": 4}},
    "cp": {"parallel": "cp2", "memory": "full"},
    "tp mixed": {"parallel": "tp2", "memory": 0.3},
    "pp mixed": {"parallel": {"pp": 2, "micro_batches": 4}, "memory": 0.3},
}


@pytest.mark.parametrize(
    "name",
    ["fsdp", *(pytest.param(name, marks=pytest.mark.long) for name in RUNS if name != "fsdp")],
)
def test_every_axis_predicts_a_peak_and_compares_it(name, tmp_path):
    ranks = run_ranks(2, predict, RUNS[name], tmp_path / "run", folder=tmp_path / "r")
    memory, recomputed, peak, events, log = ranks[0]
    assert "memory predicted peak" in log
    assert "memory measured" in log
    assert "on all 2" in log
    [event] = events
    assert [event["measured_bytes"], event["predicted_bytes"]] == event["by_rank"][0]
    assert peak > 2**20
    for measured, predicted in event["by_rank"]:
        assert measured == pytest.approx(predicted, rel=0.25)
    assert bool(recomputed) == ("mixed" in name)
    if "tp" in name:  # else they would wait for each other
        assert ranks[1][:2] == (memory, recomputed)


@pytest.mark.parametrize(
    "layout", ["tp2", *(pytest.param(each, marks=pytest.mark.long) for each in ("fsdp2", "pp2"))]
)
def test_a_mixture_changes_nothing_that_a_layout_learns(layout, reference, tmp_path):
    run = tmp_path / "run"
    settings = {"parallel": layout, "memory": 0.4, "folder": tmp_path / "r"}
    found = run_ranks(LAYOUTS[layout], train_all_small, run, **settings)
    compare(reference, found[0], run)
