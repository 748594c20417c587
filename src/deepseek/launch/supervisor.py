"""The launcher of one host: starts agents until the job is done, stopped or refused.

```
choose a meeting point --> run an agent --> judge its end
      ^                                          |
      |   rendezvous host lost, agent killed     |   done, stopped, failed: exit
      +------------------------------------------+
```
Every host runs one, with the same ordered list of candidates. A candidate at which somebody
listens is joined, the earliest first. Where nobody does, the first candidate leads; after
`PATIENCE_S` it is taken for dead, and the next one leads.

Without `--supervise` there is one candidate and one round.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.launch.agent import FORWARDED, Agent, agent_command
from deepseek.launch.job import Job
from deepseek.launch.outcome import SIGNAL_CODES, Outcome, judge, last_lines
from deepseek.launch.process import end_workers
from deepseek.launch.watch import Place, Watch, say

MAX_ROUNDS = 10
"""Failovers in a row; a generation that ran for `STEADY_S` begins the count anew."""
STEADY_S = 300.0
FIRST_PATIENCE_S = 60.0
"""How long hosts wait for an earlier candidate when the job begins."""
PATIENCE_S = 8.0
"""The same after a failover: long enough for a supervisor to start its agent again."""
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
LOOK_S = 0.25


def launch(job: Job, log_dir: Path | None = None) -> int:
    """Run the job's share of this host; return the exit code.

    Args:
        job: what to start.
        log_dir: folder for logs and reports, kept; a temporary one by default, which goes when all
            went well.
    """
    folder = _private_folder(job, log_dir)
    supervisor = Supervisor(job, folder)
    code = 1
    try:
        with supervisor.signals():
            code = supervisor.run()
    finally:
        if code == 0 and log_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    return code


class Supervisor:
    """State between the generations of one job on this host."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self._agent: Agent | None = None
        self._received: signal.Signals | None = None
        self._generation = 0
        self._rounds = 0
        self._shows_rank_0 = False

    def run(self) -> int:
        """Run generation after generation; return the exit code of the last one."""
        while True:
            place = self._choose()
            if self._received is not None:
                return SIGNAL_CODES[self._received]
            began = time.monotonic()
            outcome, launch_dir = self._run_generation(place)
            if time.monotonic() - began > STEADY_S:
                self._rounds = 0
            if self._is_final(outcome, place):
                self._explain(outcome, launch_dir, place)
                return outcome.code
            self._rounds += 1
            self._generation += 1
            say(f"{_reason(outcome, place)}; round {self._rounds} of {MAX_ROUNDS}, looking again")
            self._pause(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (self._rounds - 1)))

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Context in which signals go to the agent, or end the search for a meeting point."""
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [each for each in FORWARDED if each != signal.SIGHUP or not is_nohup]
        previous = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        del frame
        self._received = self._received or signal.Signals(number)
        if self._agent is not None:
            self._agent.receive(number)

    # -- one generation ----------------------------------------------------------------------

    def _run_generation(self, place: Place) -> tuple[Outcome, Path]:
        launch_dir = self.folder / f"generation_{self._generation}"
        launch_dir.mkdir(mode=0o700)
        (launch_dir / "flight_recorder").mkdir()
        command = agent_command(self.job, launch_dir / "logs", place.endpoint, place.is_host)
        agent = self._agent = Agent(command, launch_dir, self.job)
        if self._received is not None:  # it came while the agent was being started
            agent.receive(self._received)
        watch = Watch(self.job.endpoints, place) if self.job.supervised else None
        code = agent.wait(watch.look) if watch else agent.wait()
        self._agent = None
        if left := end_workers(launch_dir):
            raise DeepSeekError(
                f"workers {', '.join(map(str, left))} do not die: they hang in the kernel",
                fix="restart this host; a driver or a network file system does not answer",
            )
        outcome = judge(launch_dir, code, agent.received, self.job.nproc)
        # Even a refused save is no reason to end: the other half has the right to write.
        if watch and watch.verdict and outcome.kind not in ("done", "stopped"):
            outcome = Outcome(outcome.code, watch.verdict)
        self._shows_rank_0 = agent.shows_rank_0
        return outcome, launch_dir

    def _is_final(self, outcome: Outcome, place: Place) -> bool:
        if not self.job.supervised or outcome.kind in ("done", "stopped", "refused"):
            return True
        if self._rounds >= MAX_ROUNDS:
            say(f"giving up after {MAX_ROUNDS} rounds")
            return True
        if outcome.kind != "failed":
            return False
        # Workers fail when a neighbour dies; if the store died with it, it was not their fault.
        return place.endpoint is None or place.is_host or place.endpoint.is_listening()

    # -- where to meet -----------------------------------------------------------------------

    def _choose(self) -> Place:
        """Return where to meet, once somebody listens there or this host is to lead."""
        candidates = self.job.endpoints
        if not candidates:
            return Place(None, 0, is_host=True)
        began = time.monotonic()
        patience_s = PATIENCE_S if self._generation else FIRST_PATIENCE_S
        waiting_for = None
        while self._received is None:
            for index, endpoint in enumerate(candidates):
                if endpoint.is_listening():
                    return self._announce(Place(endpoint, index, is_host=False))
            waited_s = time.monotonic() - began
            leader = min(int(waited_s / patience_s), len(candidates) - 1)
            endpoint = candidates[leader]
            if endpoint.is_free():
                return self._announce(Place(endpoint, leader, is_host=True))
            if waiting_for != leader:
                waiting_for = leader
                say(f"waiting for {endpoint} (candidate {leader + 1} of {len(candidates)})")
            if waited_s > max(self.job.timeout_s, patience_s * len(candidates)):
                raise DeepSeekError(
                    f"nobody opened {' or '.join(map(str, candidates))} within {waited_s:.0f} s",
                    fix="see that the first host runs the same command, and that no firewall is"
                    " between; --timeout-s waits longer",
                )
            time.sleep(LOOK_S)
        return Place(candidates[0], 0, is_host=False)

    def _announce(self, place: Place) -> Place:
        if self.job.supervised:
            verb = "leading at" if place.is_host else "joining"
            say(f"{verb} {place.endpoint} (generation {self._generation})")
        return place

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._received is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    # -- what the user is told -----------------------------------------------------------------

    def _explain(self, outcome: Outcome, launch_dir: Path, place: Place) -> None:
        if outcome.kind in ("done", "stopped"):
            return
        if outcome.kind == "lost":
            hint = "" if self.job.supervised else "; with --supervise other hosts go on"
            say(f"the rendezvous at {place.endpoint} is lost{hint}")
        elif outcome.kind == "closed":
            say("another host has left the job in failure, which closed the rendezvous")
        elif outcome.kind == "killed":
            say(f"torchrun was killed (signal {outcome.code - 128}); its workers are gone too")
        was_shown = self._shows_rank_0 and outcome.rank == 0
        if outcome.kind in ("refused", "failed") and not was_shown:
            who = "torchrun" if outcome.rank is None else f"rank {outcome.rank}"
            say(f"{who} failed (exit code {outcome.code}); it printed last:")
            sys.stderr.write(last_lines(launch_dir, outcome) + "\n")
        elif outcome.kind == "failed":
            say(f"rank 0 failed (exit code {outcome.code})")
        say(f"the output of every rank is in {launch_dir}")


def _reason(outcome: Outcome, place: Place) -> str:
    if outcome.kind == "returned":
        return f"left {place.endpoint}"
    if outcome.kind == "killed":
        return f"torchrun was killed (signal {outcome.code - 128})"
    if outcome.kind == "closed":
        return "another host has left the job in failure"
    return f"the rendezvous at {place.endpoint} is lost"


def _private_folder(job: Job, log_dir: Path | None) -> Path:
    """Create the folder of this launch, for this user alone: what workers print may be secret.

    Raises:
        ConfigError: if the folder of logs is a file, or cannot be written.
    """
    try:
        if log_dir is None:
            return Path(tempfile.mkdtemp(prefix="deepseek-launch-"))
        log_dir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{job.run_id}-", dir=log_dir.resolve()))
    except OSError as error:
        raise ConfigError(
            f"--log-dir={log_dir} cannot be written: {error.strerror}",
            fix="name a folder that you may write to",
        ) from error
