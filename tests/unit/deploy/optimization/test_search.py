"""What is tried when, with trials whose figures are given instead of measured."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepseek.deploy.artefact import description_of
from deepseek.deploy.optimization import search
from deepseek.deploy.optimization.candidate import BASE, Candidate
from deepseek.deploy.optimization.journal import Journal
from deepseek.deploy.optimization.material import Material
from deepseek.deploy.optimization.result import FAILED, KEPT, REJECTED, SKIPPED, choose
from deepseek.deploy.optimization.search import Plan, Search
from deepseek.deploy.optimization.trial import SUMS
from deepseek.trainer.console import Console
from deepseek.trainer.task import ClassificationTask

COMPILED, OPENVINO = Candidate("compiled"), Candidate("openvino", "int8")
SPEEDS = {"eager": 1.0, "compiled": 3.0, "openvino": 4.0}


@pytest.fixture
def trials(monkeypatch):
    """What is asked of trials, and how they answer: `speeds`, `hits`, `others`, `errors`."""
    known = {
        "speeds": dict(SPEEDS),
        "hits": {},
        "methods": {},
        "sparse": {},
        "others": 0.0,
        "errors": {},
        "asked": [],
    }

    def run(kind, task, folder, limits, tick):
        known["asked"].append((kind, task.runtime, task.threads, bool(task.metric), task.seconds))
        if (kind, task.runtime) in known["errors"]:
            return known["errors"][kind, task.runtime]
        if kind == "convert":
            description_of(Path(task.artefact)).write_text("{}")
            in_float = {"in_float": ["a", "b"]} if task.method.endswith("_mixed") else {}
            return {"convert_s": 1.0, **in_float}
        hits = torch.zeros(100, 2, dtype=torch.float64)
        count = known["methods"].get(task.method, known["hits"].get(task.runtime, 90))
        count = known["sparse"].get(task.sparsity, count)
        hits[:count, 0] = 1
        hits[:, 1] = 1
        if task.metric:
            save_file({"sums": hits}, Path(task.result).parent / SUMS)
        gains = (1.5 if task.threads == 1 else 1.0) * (1.4 if "%" in task.sparsity else 1.0)
        speed = known["speeds"][task.runtime] * gains
        rounds = [{"own_s": 1 / speed, "base_s": 1.0, "others": known["others"]}] * 4
        batches = [{"size": size, "rounds": rounds} for size in task.batch_sizes]
        return {
            "one": rounds, "batches": batches, "file_bytes": 10, "peak_bytes": 20,
            "ready_s": 0.1, "difference": 0.0,
        }  # fmt: skip

    monkeypatch.setattr(search, "run_trial", run)
    return known


@pytest.fixture
def make(tmp_path):
    def make(target="latency", budget_s=1000.0, began=None, sparsities=(), sizes=(32,)):
        material = Material(tmp_path / "data.safetensors", 100, 200, True, "digest")
        plan = Plan(
            tmp_path / "work", {"model": tmp_path / "model.bin"}, {"model": "hash"},
            [(BASE, ""), (OPENVINO, ""), (COMPILED, ""), (Candidate("aoti"), "not installed: x")],
            sparsities, material, ClassificationTask(2), "accuracy", target, 0.005, sizes, 2,
            budget_s, time.monotonic() if began is None else began, None,
        )  # fmt: skip
        journal = Journal(tmp_path / "trials.jsonl", {})
        return Search(plan, journal, Console(tmp_path / "log.txt", shown=False))

    return make


def test_the_best_are_timed_longer_and_the_winner_with_fewer_threads(make, trials):
    trials["speeds"]["compiled"] = 3.9
    found = make()
    found.run()
    seconds = found.plan.timing_s
    again = [(each[1], each[2], each[4] / seconds) for each in trials["asked"] if not each[3]]
    longer = [each for each in again if each[2] > 0]
    assert longer == [
        ("openvino", None, 2), ("compiled", None, 2), ("openvino", None, 4), ("compiled", None, 4),
        ("openvino", 1, 2), ("compiled", 1, 2),
    ]  # fmt: skip
    assert found.rows[OPENVINO].one.num_rounds == 12
    best = choose(list(found.rows.values()), "latency")
    assert best.candidate == Candidate("openvino", "int8", threads=1)
    assert best.quality == found.rows[OPENVINO].quality
    assert found.rows[Candidate("aoti")].status == SKIPPED


def test_beside_other_programs_threads_are_not_chosen(make, trials):
    trials["others"] = 0.5
    found = make()
    found.run()
    assert all(each[2] is None for each in trials["asked"])


def test_for_size_nothing_is_timed_again(make, trials):
    found = make("size")
    found.run()
    assert len(trials["asked"]) == 6


def test_a_loss_beyond_the_tolerance_is_rejected_and_a_doubt_is_told(make, trials):
    trials["hits"] = {"openvino": 89, "compiled": 90}
    found = make()
    found.run()
    assert found.rows[OPENVINO].status == REJECTED
    assert found.rows[OPENVINO].quality.drop == pytest.approx(0.01)
    assert found.rows[COMPILED].status == KEPT
    assert choose(list(found.rows.values()), "latency").candidate.runtime == "compiled"


def test_after_its_share_of_the_budget_nothing_new_is_begun(make, trials):
    found = make(budget_s=100.0, began=time.monotonic() - 70.0)
    found.run()
    assert found.rows[BASE].is_measured
    assert found.rows[OPENVINO].reason == "the budget was used up"
    assert {each[1] for each in trials["asked"]} == {"eager"}


def slow_openvino(trials):
    trials["errors"] = {("measure", "openvino"): {"error": "took long", "timed_out": True}}


def test_one_that_took_its_time_has_failed_until_there_is_more(make, trials):
    slow_openvino(trials)
    found = make(budget_s=100.0)
    found.run()
    assert found.rows[OPENVINO].status == FAILED
    assert found.rows[OPENVINO].reason == "took longer than 30 s"
    trials["errors"] = {}
    again = make(budget_s=100.0)
    again.run()
    assert again.rows[OPENVINO].status == FAILED
    longer = make(budget_s=1000.0)
    longer.run()
    assert longer.rows[OPENVINO].status == KEPT


def test_one_that_the_budget_cut_off_is_tried_again_the_next_time(make, trials):
    slow_openvino(trials)
    found = make(budget_s=20.0)
    found.run()
    assert found.rows[OPENVINO].reason == "the budget ended while it was tried"
    trials["errors"] = {}
    again = make(budget_s=20.0)
    again.run()
    assert again.rows[OPENVINO].status == KEPT


def test_finished_trials_are_not_done_again(make, trials):
    make().run()
    count = len(trials["asked"])
    again = make()
    again.run()
    assert len(trials["asked"]) == count
    assert again.rows[OPENVINO].one.num_rounds == 4
    assert json.loads((again.plan.work.parent / "trials.jsonl").read_text().splitlines()[0])


def test_a_model_that_cannot_be_measured_at_all_is_an_error(make, trials):
    trials["errors"] = {("convert", "eager"): {"error": "crashed with SIGSEGV"}}
    with pytest.raises(search.ConfigError, match="the model as it is could not be measured: crash"):
        make().run()


def test_int8_that_loses_too_much_is_tried_again_with_layers_in_float(make, trials):
    static = Candidate("openvino", "fp32", "int8_static")
    found = make()
    found = Search(
        replace(found.plan, candidates=[(BASE, ""), (static, "")]), found._journal, found._console
    )
    trials["methods"] = {"int8_static": 80}
    found.run()
    assert found.rows[static].status == REJECTED
    mixed = found.rows[static.mixed]
    assert (mixed.status, mixed.candidate.name) == (KEPT, "openvino int8_static mixed")
    assert mixed.reason == "2 layers in float: a, b"
    assert mixed.candidate.mixed is None
    assert choose(list(found.rows.values()), "latency").candidate.is_mixed


def test_fewer_weights_that_hold_are_tried_with_the_best_ways(make, trials):
    trials["sparse"] = {"50%": 80}
    found = make(sparsities=("2:4", "90%", "50%"))
    found.run()
    rows = {row.candidate.name: row for row in found.rows.values()}
    assert rows["eager fp32 with 50% of the FLOPs"].status == REJECTED
    assert "train it on" in rows["eager fp32 with 50% of the FLOPs"].reason
    assert rows["eager fp32 with 2:4 zeros"].reason == "no CPU gains from zeros in a pattern"
    sparse = [name for name in rows if " with " in name and "thread" not in name]
    assert sparse == [
        "eager fp32 with 2:4 zeros", "eager fp32 with 90% of the FLOPs",
        "openvino int8 with 90% of the FLOPs", "compiled fp32 with 90% of the FLOPs",
        "eager fp32 with 50% of the FLOPs",
    ]  # fmt: skip
    best = choose(list(found.rows.values()), "latency").candidate
    assert best == Candidate("openvino", "int8", sparsity="90%", threads=1)
    count = len(trials["asked"])
    make(sparsities=("2:4", "90%", "50%")).run()
    assert len(trials["asked"]) == count


def test_fewer_weights_are_left_out_where_the_budget_is_used_up(make, trials):
    found = make(budget_s=100.0, began=time.monotonic() - 90.0, sparsities=("90%",))
    found.run()
    assert found.rows[replace(BASE, sparsity="90%")].reason == "the budget was used up"


def test_each_size_of_batches_is_measured_and_compared_with_the_original(make, trials):
    trials["speeds"]["compiled"] = 3.9
    found = make("throughput", sizes=(8, 32))
    found.run()
    batches = found.rows[OPENVINO].batches
    assert [batch.size for batch in batches] == [8, 32]
    # as the original takes as long for 8 as for 32, it has a quarter of the throughput there
    assert [batch.share for batch in batches] == [0.25, 1.0]
    assert found.rows[OPENVINO].fastest.size == 32
    assert all(len(rounds) == 12 for rounds in found._rounds[OPENVINO].batches.values())
