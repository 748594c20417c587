import pytest

from deepseek.planner.constants import CALIBRATION
from deepseek.planner.network import exposed_s, make_ring, send_s


def test_a_ring_inside_a_node_runs_at_the_links(a100s):
    ring = make_ring(a100s(16), 8, 1, CALIBRATION)
    assert ring.bytes_per_s == pytest.approx(300e9 * CALIBRATION.link_share)


def test_rings_that_leave_a_node_share_its_cards(a100s):
    cluster = a100s(64, node_bandwidth=200e9)
    whole = make_ring(cluster, 64, 1, CALIBRATION)
    eighth = make_ring(cluster, 8, 8, CALIBRATION)
    assert whole.bytes_per_s == pytest.approx(200e9 * CALIBRATION.node_share)
    assert eighth.bytes_per_s == pytest.approx(whole.bytes_per_s / 8)


def test_one_card_for_each_ring_is_an_eighth(a100s):
    ring = make_ring(a100s(64, cards_per_ring=1), 64, 1, CALIBRATION)
    assert ring.bytes_per_s == pytest.approx(25e9 * CALIBRATION.node_share)


def test_an_all_reduce_is_two_gathers_and_one_rank_needs_none(a100s):
    ring = make_ring(a100s(8), 8, 1, CALIBRATION)
    assert ring.all_reduce_s(1e9) == 2 * ring.gather_s(1e9)
    assert make_ring(a100s(8), 1, 1, CALIBRATION).all_reduce_s(1e9) == 0


def test_neighbours_in_a_node_send_faster(a100s):
    assert send_s(a100s(16), 1e9, 1, CALIBRATION) < send_s(a100s(16), 1e9, 8, CALIBRATION)


def test_hidden_communication_costs_less_than_it_takes(a100s):
    cluster = a100s(8)
    assert 0 < exposed_s(cluster, 1.0, 1e11, 5.0, CALIBRATION) < 1.0
    assert exposed_s(cluster, 5.0, 1e11, 1.0, CALIBRATION) > 4.0
    assert exposed_s(cluster, 1.0, 1e11, 0.0, CALIBRATION) == 1.0
