"""What the end of an agent means: the exit code, who failed first, and whether to go on."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from deepseek.launch.agent import AGENT_LOG
from deepseek.launch.exit_report import find_user_error, read_reports

SIGNAL_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75, signal.SIGHUP: 129}
"""Exit codes after a signal, as those of the trainer."""
LOST_RENDEZVOUS = {
    "RendezvousConnectionError",
    "RendezvousTimeoutError",
    "RendezvousStateError",
    "RendezvousError",
    "DistNetworkError",
    "DistStoreError",
}
CLOSED_RENDEZVOUS = {"RendezvousClosedError", "RendezvousGracefulExitError"}
ERROR_LINE = re.compile(r"^(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception))(?:: |$)", re.M)
ROOT_CAUSE = re.compile(
    r"Root Cause.*?rank\s*: (?P<rank>\d+) \(local_rank: (?P<local_rank>\d+)\)"
    r".*?exitcode\s*: (?P<code>-?\d+)",
    re.S,
)
FORCED = re.compile(r"Unable to shutdown process \d+")
SHOWN_LINES = 20


@dataclass(frozen=True)
class Outcome:
    """How a generation of workers ended on this host.

    Args:
        code: exit code for the user.
        kind: "done", "stopped" by a signal, "refused" by a user error, "failed" worker, "lost" the
            rendezvous host, "closed" by another host, or "killed" agent.
        rank, local_rank: who failed first, where that is known.
    """

    code: int
    kind: str
    rank: int | None = None
    local_rank: int | None = None


def judge(
    launch_dir: Path, agent_code: int, received: signal.Signals | None, nproc: int
) -> Outcome:
    """Say what the end of the agent means.

    Args:
        launch_dir: folder of the generation.
        agent_code: the agent's exit code, negative for a signal.
        received: the signal that was passed on to it.
        nproc: workers of this host.
    """
    reports = read_reports(launch_dir)
    if agent_code == 0:
        return Outcome(0, "done")
    log = _read(launch_dir / AGENT_LOG)
    if received is not None:
        last = [report for report in reports if report.attempt == reports[-1].attempt]
        # A worker that was killed leaves no report: the others do not speak for it.
        if len(last) >= nproc and all(report.code == 0 for report in last):
            return Outcome(0, "done")  # the signal came as the last step had been taken
        # Cut off in the midst of saving: 143 would promise a state that is not there.
        code = 137 if FORCED.search(log) else SIGNAL_CODES[received]
        return Outcome(code, "stopped")
    if refused := find_user_error(reports):
        return Outcome(refused.code, "refused", refused.rank, refused.local_rank)
    if agent_code < 0:
        return Outcome(128 - agent_code, "killed")
    error = (ERROR_LINE.findall(log) or [""])[-1]
    if error in LOST_RENDEZVOUS:
        return Outcome(1, "lost")
    if error in CLOSED_RENDEZVOUS:
        return Outcome(1, "closed")
    if found := ROOT_CAUSE.search(log):
        code = int(found["code"])
        code = code if code > 0 else 128 - code
        return Outcome(code, "failed", int(found["rank"]), int(found["local_rank"]))
    failed = [report for report in reports if report.code != 0]
    if failed:
        first = min(failed, key=lambda report: (-report.attempt, report.time_s))
        return Outcome(first.code, "failed", first.rank, first.local_rank)
    return Outcome(1, "failed")


def last_lines(launch_dir: Path, outcome: Outcome) -> str:
    """Return the end of what the failing rank printed to stderr, or the agent where none did."""
    if outcome.local_rank is None:
        text = _read(launch_dir / AGENT_LOG)
    else:
        # The last attempt of a rank may be silent: it left because an earlier one was refused.
        files = (launch_dir / "logs").glob(f"*/attempt_*/{outcome.local_rank}/stderr.log")
        written = [file for file in files if file.stat().st_size > 0]
        text = _read(max(written, key=lambda file: file.stat().st_mtime)) if written else ""
    return "\n".join(text.splitlines()[-SHOWN_LINES:])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
