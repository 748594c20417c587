import signal

import pytest

from deepseek.launch.agent import AGENT_LOG
from deepseek.launch.exit_report import find_user_error, read_reports, write_report
from deepseek.launch.outcome import judge, last_lines

# As torch 2.14 prints it; the second failure is that of a rank that was stopped.
CHILD_FAILED = """\
E1125 18:40:00.1 7 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: -9)
Traceback (most recent call last):
  File "torch/distributed/launcher/api.py", line 1, in launch_agent
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
============================================================
deepseek.launch.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-25_18:40:01
  host      : h
  rank      : 0 (local_rank: 0)
  exitcode  : 143 (pid: 12)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_18:40:00
  host      : h
  rank      : 9 (local_rank: 1)
  exitcode  : {code} (pid: 13)
  error_file: <N/A>
============================================================
"""
LOST = """\
RuntimeError: Broken pipe

The above exception was the direct cause of the following exception:

torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection has failed.
"""


@pytest.fixture
def ended(tmp_path):
    """Return a function that leaves what an agent and its workers leave."""

    def leave(log="", reports=()):
        (tmp_path / AGENT_LOG).write_text(log)
        for rank, code, attempt in reports:
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
            write_report(tmp_path, code, environment)
        return tmp_path

    return leave


def test_success_is_success_whatever_was_tried_before(ended):
    assert judge(ended(reports=[(0, 1, 0), (0, 0, 1)]), 0, None, 1).code == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_signal_gives_its_code(ended, number, code):
    outcome = judge(ended(reports=[(0, code, 0)]), 1, number, 1)
    assert (outcome.code, outcome.kind) == (code, "stopped")


def test_signal_after_the_last_step_is_success(ended):
    assert judge(ended(reports=[(0, 0, 0), (1, 0, 0)]), 1, signal.SIGTERM, 2).code == 0


def test_worker_that_was_killed_is_not_done_because_the_others_are(ended):
    assert judge(ended(reports=[(1, 0, 0)]), 1, signal.SIGTERM, 2).code == 143


def test_worker_that_was_cut_off_has_not_saved(ended):
    log = "W1125 Unable to shutdown process 12 via 15, forcefully exiting via 9\n"
    assert judge(ended(log), 1, signal.SIGTERM, 1).code == 137


def test_lowest_rank_with_a_user_error_speaks_for_all(ended):
    folder = ended(reports=[(3, 2, 0), (1, 3, 0), (0, 143, 0)])
    outcome = judge(folder, 1, None, 1)
    assert (outcome.code, outcome.kind, outcome.rank) == (3, "refused", 1)


def test_user_error_of_the_first_attempt_counts(ended):
    folder = ended(reports=[(0, 5, 1), (1, 2, 0)])
    assert find_user_error(read_reports(folder)).code == 2


@pytest.mark.parametrize(("shown", "code"), [("-9", 137), ("-11", 139), ("1", 1), ("7", 7)])
def test_root_cause_of_torchrun_gives_rank_and_code(ended, shown, code):
    outcome = judge(ended(CHILD_FAILED.format(code=shown), [(8, 143, 0)]), 1, None, 1)
    assert (outcome.code, outcome.kind, outcome.rank) == (code, "failed", 9)
    assert outcome.local_rank == 1


def test_lost_rendezvous_is_told_from_a_failed_worker(ended):
    assert judge(ended(LOST), 1, None, 1).kind == "lost"
    assert judge(ended(LOST + CHILD_FAILED.format(code="1")), 1, None, 1).kind == "failed"


def test_closed_rendezvous_is_told_from_a_lost_one(ended):
    log = LOST.replace("RendezvousConnectionError", "RendezvousClosedError")
    assert judge(ended(log), 1, None, 1).kind == "closed"


def test_killed_agent_gives_the_code_of_the_signal(ended):
    outcome = judge(ended(), -9, None, 1)
    assert (outcome.code, outcome.kind) == (137, "killed")


def test_last_lines_are_those_of_the_newest_output_of_the_rank(ended):
    folder = ended(CHILD_FAILED.format(code="1"))
    for attempt, text in ((0, "first\n"), (1, "")):
        path = folder / "logs" / "run_x" / f"attempt_{attempt}" / "1" / "stderr.log"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert last_lines(folder, judge(folder, 1, None, 1)) == "first"


def test_damaged_report_is_left_out(ended):
    folder = ended(reports=[(0, 3, 0)])
    (folder / "exits" / "attempt_0_rank_1.json").write_text("{")
    assert [report.code for report in read_reports(folder)] == [3]
