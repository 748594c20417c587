import pytest

from deepseek.planner import Cluster, find_gpu, find_shape
from deepseek.planner.explanation import (
    GIB,
    PARTS,
    explain_changes,
    explain_families,
    find_worst_rank,
    say_plan,
)
from deepseek.planner.search import search
from deepseek.planner.search_space import SearchSpace

SPACE = SearchSpace()


@pytest.fixture(scope="module")
def case():
    shape, cluster = find_shape("gpt3-175b"), Cluster(find_gpu("a100-80"), 1024)
    return shape, cluster, search(shape, cluster, 2048, SPACE)


def test_every_family_but_the_choice_has_a_reason(case):
    _, cluster, found = case
    losses = explain_families(found, cluster, SPACE)
    assert {loss.name for loss in losses} == found.families().keys() - {found.best.family}
    assert all(loss.why for loss in losses)
    fits = [loss.fits for loss in losses]
    assert fits == sorted(fits, reverse=True)  # those that fit come first


def test_what_does_not_fit_says_by_how_much_and_of_what(case):
    _, cluster, found = case
    loss = next(loss for loss in explain_families(found, cluster, SPACE) if loss.name == "dp")
    prediction = loss.candidate.prediction
    over = (prediction.peak_bytes - SPACE.limit_bytes(cluster.gpu)) / GIB
    memory = prediction.memory[find_worst_rank(prediction)]
    assert not loss.fits
    assert f"{over:,.1f} GiB too many" in loss.why
    assert max(memory, key=memory.get) in loss.why


def test_what_is_slower_says_by_how_much_and_which_part_grew_most(case):
    _, cluster, found = case
    best = found.best.prediction
    for loss in explain_families(found, cluster, SPACE):
        other = loss.candidate.prediction
        if not loss.fits or other.step_s <= best.step_s:
            continue
        rises = {name: other.time_s[name] - best.time_s[name] for name in PARTS}
        most = max(rises, key=rises.get)
        assert f"{other.step_s / best.step_s - 1:.1%} slower: {PARTS[most]}" in loss.why


def test_changes_cover_policies_micro_batches_and_schedules(case):
    shape, cluster, found = case
    names = {change.name for change in explain_changes(shape, cluster, found.best, SPACE)}
    assert "recompute full" in names or found.best.plan.recompute == "full"
    assert any(name.startswith("micro-batch") for name in names)
    assert any("zero_bubble" in name for name in names)


def test_an_unmeasured_schedule_is_marked(case):
    shape, cluster, found = case
    changes = explain_changes(shape, cluster, found.best, SPACE)
    zero_bubble = next(change for change in changes if "zero_bubble" in change.name)
    assert not zero_bubble.fits or "never held against a measurement" in zero_bubble.why


def test_a_plan_is_one_line(case):
    plan = case[2].best.plan
    assert say_plan(plan).endswith(
        f"{plan.num_micro_batches} x {plan.micro_batch_size}, recompute {plan.recompute}"
    )
