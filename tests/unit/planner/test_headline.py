"""The headline claim: what of it holds, and that nothing passes the bound."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def headline():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        module = importlib.import_module("planner_headline")
    return module, module.compare("deepseek")


def test_full_sharding_takes_72_hours_and_no_plan_passes_the_bound(headline):
    module, rows = headline
    for row in rows:
        assert row.hours("full sharding") == module.HOURS
        assert row.bound_hours < row.hours("hybrid") <= row.hours("sharding in groups")


def test_eighteen_hours_need_a_poor_network_and_are_out_of_reach_of_a_usual_one(headline):
    module, rows = headline
    for row in rows:
        usual = row.cluster.gpu.node_bandwidth
        if row.cluster.node_bandwidth == usual:
            assert row.bound_hours > module.WANTED_HOURS
        if row.cluster.node_bandwidth <= usual / 16:
            assert row.hours("hybrid") <= module.WANTED_HOURS


def test_every_cluster_has_its_lines(headline):
    module, rows = headline
    for row in rows:
        text = module.describe(row)
        assert "full sharding" in text
        assert text.splitlines()[-1].startswith("  18 h: ")
