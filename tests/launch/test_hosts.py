"""Two hosts that are network namespaces: one dies, is cut off, comes back."""

import itertools
import os
import signal
import time

import pytest

from deepseek.launch.process import living_workers


def assert_counted_on(steps):
    """The count goes on where it was: at most the step that was under way is done again."""
    counts = [step["step"] for step in steps]
    assert counts[0] == 1
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(counts))


def longest_pause_s(steps):
    times = [step["time_s"] for step in steps]
    return max(after - before for before, after in itertools.pairwise(times))


def start_both(hosts, *arguments):
    first, second = hosts.launch("a", *arguments), hosts.launch("b", *arguments)
    hosts.wait_for_steps(3, world_size=2, host="a")
    return first, second


@pytest.mark.timeout(600)
def test_job_goes_on_after_everything_on_the_rendezvous_host_was_killed(hosts):
    _, second = start_both(hosts)
    hosts.kill_all("a")
    hosts.wait_for_steps(3, world_size=1, host="b")
    hosts.finish()
    assert second.wait() == 0
    assert "the rendezvous at 10.77.0.1:29500 is lost" in second.err
    assert "leading at 10.77.0.2:29500 (generation 1)" in second.err
    assert "Traceback" not in second.err
    assert_counted_on(hosts.steps())
    assert longest_pause_s(hosts.steps()) < 60  # 17 s where the machine has nothing else to do
    assert {step["run"] for step in hosts.steps()} == {"job"}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_rendezvous_host_that_comes_back_joins_the_others(hosts):
    _, second = start_both(hosts)
    hosts.kill_all("a")
    hosts.wait_for_steps(3, world_size=1, host="b")
    back = hosts.launch("a")
    hosts.wait_for_steps(3, world_size=2)
    hosts.finish()
    assert [back.wait(), second.wait()] == [0, 0]
    assert "joining 10.77.0.2:29500" in back.err
    assert_counted_on(hosts.steps())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_rendezvous_host_goes_on_alone_after_everything_on_the_other_was_killed(hosts):
    first, _ = start_both(hosts)
    hosts.kill_all("b")
    hosts.wait_for_steps(3, world_size=1, host="a")
    hosts.finish()
    assert first.wait() == 0
    assert_counted_on(hosts.steps())
    assert longest_pause_s(hosts.steps()) < 60  # 14 s where the machine has nothing else to do


@pytest.mark.timeout(600)
@pytest.mark.parametrize("host", [pytest.param("a", marks=pytest.mark.long), "b"])
def test_agent_that_was_killed_leaves_no_worker_and_its_host_joins_again(hosts, host):
    both = dict(zip("ab", start_both(hosts), strict=True))
    agent, workers = both[host].wait_for_workers(1)
    folder = both[host].generation()
    os.kill(agent, signal.SIGKILL)
    hosts.wait_for_steps(3, world_size=2)
    assert not set(workers) & set(living_workers(folder))
    hosts.finish()
    assert [launcher.wait() for launcher in both.values()] == [0, 0]
    assert "torchrun was killed (signal 9)" in both[host].err


@pytest.mark.timeout(600)
def test_link_that_is_down_for_two_seconds_costs_no_host(hosts):
    first, second = start_both(hosts)
    hosts.set_link("down")
    time.sleep(2)  # TCP tries again twice more within the 8 s that gloo waits
    hosts.set_link("up")
    hosts.wait_for_steps(3, world_size=2)
    hosts.finish()
    assert [first.wait(), second.wait()] == [0, 0]
    assert "generation 1" not in first.err + second.err
    assert (
        1.5 < longest_pause_s(hosts.steps()) < 8
    )  # gloo waits for 8 s; no worker was started anew
    assert len({step["pid"] for step in hosts.steps()}) == 1


@pytest.mark.long
@pytest.mark.timeout(400)
def test_halves_of_a_network_that_was_cut_for_a_minute_find_together(hosts):
    first, second = start_both(hosts)
    hosts.set_link("down")
    hosts.wait_for_steps(3, world_size=1, host="a")
    time.sleep(45)
    hosts.set_link("up")
    hosts.wait_for_steps(10, world_size=2, timeout_s=120)
    hosts.finish()
    assert [first.wait(), second.wait()] == [0, 0]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_job_goes_on_after_the_rendezvous_host_has_vanished_without_a_word(hosts):
    """As by a power cut: no connection is closed, answers just do not come."""
    _, second = start_both(hosts)
    hosts.set_link("down")
    hosts.kill_all("a")
    hosts.wait_for_steps(3, world_size=1, host="b", timeout_s=90)
    hosts.finish()
    assert second.wait() == 0
    assert_counted_on(hosts.steps())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_job_of_a_majority_does_not_go_on_in_both_halves(hosts):
    """With 2 of 2 hosts required, neither half trains while the link is down."""
    first, second = start_both(hosts, "--nnodes", "2", "--max-restarts", "10")
    hosts.set_link("down")
    count = len(hosts.steps())
    time.sleep(12)
    assert len(hosts.steps()) <= count + 2
    hosts.set_link("up")
    hosts.wait_for_steps(3, world_size=2, timeout_s=120)
    hosts.finish()
    assert [first.wait(), second.wait()] == [0, 0]
