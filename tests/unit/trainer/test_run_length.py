import json

import pytest
import torch
from tests.unit.trainer.test_trainer import QUIET, make_net, make_table

from deepseek.datasets import InteractionDataset
from deepseek.deploy import DynamicPruning
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Schedule, Trainer
from deepseek.trainer.run_length import RunLength


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, result):
        if trainer.step == self.step:
            trainer.request_stop("enough")


def make_trainer(tmp_path, budget, **settings):
    return Trainer(
        make_net(), make_table(), make_table(20), batch_size=10, run_dir=tmp_path / "run",
        time_budget=budget, **QUIET, **settings,
    )  # fmt: skip


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def records_of(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_what_an_evaluation_and_a_save_take_is_kept_free_at_the_end():
    length = RunLength(None, 100.0)
    length.begin(0, 0.0, evaluation_steps=3)
    # a step takes 1 s, an evaluation a third of three of them, at the end there are two
    assert length.look(10, 10.0, evaluates=False) == pytest.approx(11 / 98)
    length.note("evaluation", 8.0)
    length.note("saving", 2.0)
    assert length.look(20, 30.0, evaluates=False) == pytest.approx(31 / 82)
    assert length.look(70, 80.0, evaluates=False) == pytest.approx(81 / 82)
    assert length.look(71, 81.0, evaluates=False) == 1
    assert length.look(63, 73.0, evaluates=True) == 1  # no time for three evaluations


def test_the_share_never_falls_and_a_new_budget_changes_it():
    length = RunLength(None, 100.0)
    length.begin(0, 0.0, evaluation_steps=30)
    length.share = first = length.look(1, 1.0, evaluates=False)
    length.note("evaluation", 0.1)
    assert length.look(2, 2.1, evaluates=False) >= first
    longer = RunLength(None, 200.0)
    longer.load_state_dict(length.state_dict())
    assert longer.share == pytest.approx(first / 2)


def test_the_learning_rate_follows_the_clock_or_the_steps_where_they_are_ahead():
    timed = Schedule("linear", 1.0, None, None, 0.0, warmup_share=0.1)
    assert timed.lr(7, 0.05) == pytest.approx(0.5)
    assert timed.lr(7, 0.1) == pytest.approx(1.0)
    assert timed.lr(7, 0.55) == pytest.approx(0.5)
    assert timed.lr(7, 1.0) == 0
    both = Schedule("linear", 1.0, 100, 10, 0.0, warmup_share=0.1)
    assert both.lr(55, 0.2) == pytest.approx(both.lr(55)) == pytest.approx(0.5)
    assert both.lr(20, 0.55) == pytest.approx(0.5)
    in_steps = Schedule("linear", 1.0, None, 4, 0.0)
    assert [in_steps.lr(step, 0.0) for step in (0, 3)] == [0.25, 1.0]
    assert in_steps.lr(4, 0.25) == pytest.approx(0.75)


def test_a_run_ends_in_time_with_its_schedule_an_evaluation_and_a_model(tmp_path):
    trainer = make_trainer(tmp_path, "3s", lr=0.1)
    assert trainer.config.epochs is None
    history = trainer.fit()
    found = summary_of(tmp_path / "run")
    assert found["status"] == "finished"
    assert found["time_budget_s"] == 3
    assert found["time_s"] < 30  # a machine that is busy may hold a step up
    assert history.records[-1]["step"] == trainer.step
    assert "val_loss" in history.records[-1]
    assert history.records[-1]["lr"] < 0.03
    assert max(record["lr"] for record in history.records) > 0.05
    assert trainer.folder.model.is_file()
    assert (tmp_path / "run/evaluation").is_dir()


def test_the_last_weights_are_evaluated_whatever_their_step(tmp_path):
    history = make_trainer(tmp_path, "1.5s", eval_every=10_000_000).fit()
    assert "val_loss" in history.records[-1]


def test_a_resumed_run_goes_on_with_the_time_that_is_left(tmp_path):
    trainer = make_trainer(tmp_path, "6s", callbacks=[StopAfter(10)])
    trainer.fit()
    before_s = trainer.recorder.time_s()
    resumed = make_trainer(tmp_path, "6s", resume=True)
    resumed.fit()
    assert resumed.step > 10
    took_s = summary_of(tmp_path / "run")["time_s"]
    assert took_s < 60
    rates = [record["lr"] for record in records_of(tmp_path / "run", "train")]
    assert rates[-1] < 0.5 * max(rates)
    assert before_s < 6
    done = make_trainer(tmp_path, "6s", resume=True)
    done.fit()
    assert done.step == resumed.step  # nothing is left
    longer = make_trainer(tmp_path, f"{int(took_s) + 3}s", resume=True)
    longer.fit()
    assert longer.step > resumed.step


def test_of_epochs_and_time_the_first_to_be_over_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path / "a", "1h", epochs=2)
    trainer.fit()
    assert trainer.step == 10
    assert trainer.config.epochs == 2
    trainer = make_trainer(tmp_path / "b", "1s", epochs=1_000_000)
    trainer.fit()
    assert summary_of(tmp_path / "b/run")["time_s"] < 30


def test_steps_alone_learn_the_same_as_beside_a_budget_that_is_far_away(tmp_path):
    weights = []
    for name, budget in (("a", None), ("b", "10d")):
        trainer = make_trainer(tmp_path / name, budget, max_steps=12)
        trainer.fit()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-8)


def test_what_needs_the_number_of_steps_says_so(tmp_path):
    with pytest.raises(ConfigError, match="time_budget=1s alone ends the run"):
        make_trainer(tmp_path, "1s", callbacks=[DynamicPruning(sparsity=0.5)]).fit()


@pytest.mark.parametrize("budget", ["20", "m20", "0s", "20 m", "-5m", 20, "1m1h"])
def test_a_time_without_unit_or_length_is_refused(tmp_path, budget):
    with pytest.raises(ConfigError, match=r"time_budget.*expected a time above 0 with its unit"):
        make_trainer(tmp_path, budget)


def test_a_model_of_tables_keeps_to_a_budget_of_time(tmp_path):
    rows = [{"user": f"u{n % 7}", "item": f"i{n % 5}", "label": str(n % 2)} for n in range(60)]
    table = tmp_path / "clicks.csv"
    lines = [",".join(row.values()) for row in rows]
    table.write_text("\n".join(["user,item,label", *lines]) + "\n")
    data = InteractionDataset(table, labels="label", cache="off")
    trainer = Trainer(
        ModelEngine("fm"), data, data, batch_size=10, run_dir=tmp_path / "run", time_budget="1s",
        **QUIET,
    )  # fmt: skip
    assert trainer.fit()[-1]["step"] > 0
