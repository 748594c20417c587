from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from deepseek.planner import Cluster, ParallelPlan, find_gpu, find_shape, predict
from deepseek.planner.timeline import draw_up, place_stage

SHAPE, CLUSTER = find_shape("gpt3-175b"), Cluster(find_gpu("a100-80"), 1024)
CLASSIC = [("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 3), ("looped_bfs", 3)]
ZERO_BUBBLE = [("interleaved_zero_bubble", 3), ("zbv_zero_bubble", 2)]


def draw(schedule, stages, pp=8, count=24):
    plan = ParallelPlan(
        dp_replicate=128 // pp, tp=8, pp=pp, num_micro_batches=count, schedule=schedule,
        virtual_stages=stages,
    )  # fmt: skip
    prediction = predict(SHAPE, CLUSTER, plan)
    return plan, prediction, draw_up(SHAPE, CLUSTER, plan, prediction)


@pytest.mark.parametrize(("schedule", "stages"), CLASSIC)
@pytest.mark.parametrize("count", [24, 48])
def test_the_picture_ends_when_the_closed_form_says(schedule, stages, count):
    _, prediction, passes = draw(schedule, stages, count=count)
    end_s = max(entry.end_s for entry in passes)
    assert end_s == pytest.approx(prediction.step_s, rel=0.01)


@pytest.mark.parametrize(("schedule", "stages"), ZERO_BUBBLE)
def test_zero_bubble_is_shorter_than_1f1b_and_near_its_closed_form(schedule, stages):
    _, prediction, passes = draw(schedule, stages)
    end_s = max(entry.end_s for entry in passes)
    assert end_s < draw("1f1b", 1)[1].step_s
    assert prediction.step_s <= end_s <= 1.1 * prediction.step_s


@pytest.mark.parametrize(("schedule", "stages"), [*CLASSIC, *ZERO_BUBBLE])
def test_every_pass_comes_once_after_what_it_needs_and_ranks_do_one_at_a_time(schedule, stages):
    plan, _, passes = draw(schedule, stages, count=16)
    done = {(p.kind, p.stage, p.micro_batch): p for p in passes if p.kind != "optimizer"}
    kinds = Counter(entry.kind for entry in passes)
    num_stages = plan.pp * plan.virtual_stages
    assert kinds["forward"] == kinds["backward"] == 16 * num_stages
    assert kinds["weights"] in (0, 16 * num_stages)
    by_rank = defaultdict(list)
    for entry in passes:
        by_rank[entry.rank].append((entry.start_s, entry.end_s))
        if entry.kind not in ("forward", "backward"):
            continue
        assert entry.rank == place_stage(plan, entry.stage)
        before = (entry.kind, entry.stage + (-1 if entry.kind == "forward" else 1))
        if (*before, entry.micro_batch) in done:
            assert done[(*before, entry.micro_batch)].end_s <= entry.start_s + 1e-12
    for spans in by_rank.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans))


def test_one_rank_never_waits():
    plan = ParallelPlan(dp_shard=64, tp=8, num_micro_batches=4)
    cluster = replace(CLUSTER, num_gpus=512)
    prediction = predict(SHAPE, cluster, plan)
    passes = draw_up(SHAPE, cluster, plan, prediction)
    assert sum(p.end_s - p.start_s for p in passes) == pytest.approx(prediction.step_s)
