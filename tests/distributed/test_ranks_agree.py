"""What one rank finds, all know: damage, signals, wishes, hangs and deaths."""

import json
import time

import pytest
from tests.distributed import misbehaviour
from tests.distributed.ranks import RankFailed, run_ranks, train


def events(run, kind):
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.mark.parametrize("place", ["loss", "gradient", "weight", "optimizer", "batch"])
@pytest.mark.parametrize("plan", ["dp2", "fsdp2", "tp2"])
def test_a_nan_on_one_rank_ends_all_in_the_same_step(place, plan, tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(
            2, misbehaviour.train_poisoned, place, tmp_path / "run", plan,
            folder=tmp_path / "ranks",
        )  # fmt: skip
    assert failed.value.codes == [5, 5]
    (bad,) = events(tmp_path / "run", "bad_step")
    assert bad["step"] == 3
    assert bad["action"] == "abort"
    saved = sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step_*"))
    assert saved == ["step_2"]


def test_a_save_under_way_is_finished_by_ranks_that_diverge(tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(
            2, misbehaviour.train_poisoned_on_a_slow_disk, tmp_path / "run", "dp2",
            folder=tmp_path / "ranks",
        )  # fmt: skip
    assert failed.value.codes == [5, 5]
    assert (tmp_path / "run/checkpoints/step_2").is_dir()


@pytest.mark.parametrize("plan", ["dp2", "fsdp2", "tp2"])
@pytest.mark.parametrize(("place", "policy"), [("gradient", "skip"), ("weight", "rollback")])
def test_all_ranks_skip_and_roll_back_together(place, policy, plan, tmp_path):
    found = run_ranks(
        2, misbehaviour.train_poisoned, place, tmp_path / "run", plan, on_bad_step=policy,
        folder=tmp_path / "ranks",
    )  # fmt: skip
    assert all(is_finite for _, is_finite in found)
    (bad,) = events(tmp_path / "run", "bad_step")
    assert (bad["step"], bad["action"]) == (3, policy)


@pytest.mark.parametrize("plan", ["dp2", "fsdp2", "pp2"])
def test_a_signal_to_one_rank_saves_and_ends_all(plan, tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(
            2, misbehaviour.train_signalled, tmp_path / "run", plan, folder=tmp_path / "ranks",
            checkpoint_every=None,
        )  # fmt: skip
    assert failed.value.codes == [143, 143]
    (saved,) = (tmp_path / "run/checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert 5 <= step <= 7
    resumed = run_ranks(
        2, train, "gpt", tmp_path / "run", parallel=plan, folder=tmp_path / "again", resume=True,
        max_steps=step + 2,
    )  # fmt: skip
    assert len(resumed[0][0]) == 2


def test_a_signal_in_an_evaluation_saves_and_ends_all(tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(
            2, misbehaviour.train_signalled_in_evaluation, tmp_path / "run", "dp2",
            folder=tmp_path / "ranks",
        )  # fmt: skip
    assert failed.value.codes == [143, 143]
    assert (tmp_path / "run/checkpoints/step_5").is_dir()


@pytest.mark.long
def test_ranks_that_have_agreed_may_save_for_long(tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(2, misbehaviour.save_for_long, tmp_path / "run", "dp2", folder=tmp_path / "ranks")
    assert failed.value.codes == [143, 143]
    assert list((tmp_path / "run/checkpoints").glob("step_*"))


def test_any_error_of_the_leading_rank_is_told_to_all(tmp_path):
    first, second = run_ranks(2, misbehaviour.lead_to_a_full_disk, folder=tmp_path)
    assert first[0] == "NotADirectoryError"
    assert second[0] == "CommunicationError"
    assert second[1].startswith(f"rank 0: {first[1]}")


def test_a_wish_of_one_rank_stops_all(tmp_path):
    found = run_ranks(
        2, misbehaviour.train_with_wish, tmp_path / "run", "dp2", folder=tmp_path / "ranks"
    )
    counts = [len(losses) for losses, _, _ in found]
    assert counts[0] == counts[1] <= 5
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "stopped: rank 1 has seen enough"


def test_ranks_may_log_different_keys(tmp_path):
    run_ranks(2, misbehaviour.log_different_keys, tmp_path / "run", "dp2", folder=tmp_path / "r")
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"rank_0"' in text
    assert '"rank_1"' not in text


@pytest.mark.parametrize("how", ["sleep", pytest.param("stop", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "plan", [{"dp_replicate": 2}, pytest.param({"tp": 2}, marks=pytest.mark.long)]
)
def test_a_rank_that_hangs_is_named_within_seconds(how, plan, tmp_path):
    began = time.monotonic()
    with pytest.raises(RankFailed):
        run_ranks(
            2, misbehaviour.train_hanging, tmp_path / "run", plan, how, folder=tmp_path / "ranks"
        )
    assert time.monotonic() - began < 200
    said = (tmp_path / "ranks/output_0.txt").read_text()
    assert "CommunicationError: rank 0 waits for" in said
    assert "step 4" in said
    assert "gloo:" in said
    if how == "sleep":
        assert "rank 1 has not come: it is at step 3, update and records" in said
        assert "misbehaviour.py" in said  # its stack
    else:
        assert "rank 1 does not answer" in said
    (hang,) = events(tmp_path / "run", "hang")
    assert "rank 1" in hang["message"]
    assert "Thread" in (tmp_path / "run/hang/rank_0.txt").read_text()


@pytest.mark.long
def test_a_pipeline_says_with_each_pass_of_a_micro_batch_that_it_goes_on(tmp_path):
    plan = {"pp": 2, "schedule": "gpipe"}
    counts = run_ranks(
        2, misbehaviour.count_passes, tmp_path / "run", plan, 8, folder=tmp_path / "ranks"
    )
    assert counts == [[16, 16], [16, 16]]  # forward and backward


def test_a_frozen_rank_0_ends_the_others(tmp_path):
    with pytest.raises(RankFailed):
        run_ranks(
            2, misbehaviour.train_with_frozen_rank_0, tmp_path / "run", folder=tmp_path / "ranks"
        )  # fmt: skip
    said = (tmp_path / "ranks/output_1.txt").read_text()
    assert "the rank that kept the store of the run is gone, or does not answer" in said


def test_a_rank_that_dies_is_named(tmp_path):
    with pytest.raises(RankFailed) as failed:
        run_ranks(2, misbehaviour.train_dying, tmp_path / "run", "dp2", folder=tmp_path / "ranks")
    assert failed.value.codes == [1, -9]
    said = (tmp_path / "ranks/output_0.txt").read_text()
    assert "CommunicationError" in said
    assert "rank 1 does not answer" in said


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_a_model_of_the_users_own_trains_with_what_it_leaves_unused(plan, tmp_path):
    first, second = run_ranks(
        2, misbehaviour.train_foreign, tmp_path / "run", plan, folder=tmp_path / "ranks"
    )
    assert first == second  # running statistics, too
    assert first[0][-1] < first[0][0]


# -- randomness ------------------------------------------------------------------------------


def test_ranks_with_other_samples_drop_other_activations(tmp_path):
    first, second = run_ranks(2, misbehaviour.dropped, "dp2", folder=tmp_path)
    for place in ("embedding", "residual", "attention"):
        assert first[place] != second[place]


def test_tensor_parallel_ranks_drop_the_same_of_what_both_hold(tmp_path):
    plan = {"tp": 2, "sequence_parallel": False}
    first, second = run_ranks(2, misbehaviour.dropped, plan, folder=tmp_path)
    assert first["embedding"] == second["embedding"]
    assert first["residual"] == second["residual"]
    assert first["attention"] != second["attention"]  # of other heads


def test_divided_tokens_are_dropped_independently(tmp_path):
    first, second = run_ranks(2, misbehaviour.dropped, "tp2", folder=tmp_path)
    assert first["embedding"] == second["embedding"]
    assert first["residual"] != second["residual"]
    assert 0.3 < sum(first["residual"][0]) / len(first["residual"][0]) < 0.7


def test_ranks_with_different_plans_are_refused_at_once(tmp_path):
    with pytest.raises(RankFailed, match=r"rank 0 has the plan dp2, and rank 1 fsdp2"):
        run_ranks(2, misbehaviour.train_with_own_plan, tmp_path / "run", folder=tmp_path / "ranks")


def test_a_plan_that_is_left_to_us_is_chosen_and_the_reason_told(tmp_path):
    run_ranks(2, train, "gpt", tmp_path / "run", folder=tmp_path / "ranks", parallel="auto")
    said = (tmp_path / "run/log.txt").read_text()
    assert "parallel dp2: 2 processes" in said
    assert "chosen: weights and their states as copies take 0.0% of the memory" in said


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_ranks_end_by_one_clock(plan, tmp_path):
    found = run_ranks(
        2, train, "vit", tmp_path / "run", parallel=plan, folder=tmp_path / "ranks",
        max_steps=None, time_budget="5s", val_size=32,
    )  # fmt: skip
    (losses, _, last), (others, _, _) = found
    assert losses == others
    assert last["step"] == len(losses) > 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["time_s"] < 60  # loaded machines
