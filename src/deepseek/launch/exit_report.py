"""What each worker says about its end: torchrun turns every exit code into 1."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deepseek.whole_file import replacing

USER_ERRORS = frozenset({2, 3, 4, 5})
"""Exit codes of errors that come again however often one tries (`deepseek.errors`)."""


@dataclass(frozen=True)
class ExitReport:
    """How one worker ended; `time_s` since the epoch."""

    rank: int
    local_rank: int
    attempt: int
    code: int
    time_s: float

    @property
    def is_user_error(self) -> bool:
        """Whether trying again is of no use."""
        return self.code in USER_ERRORS


def write_report(launch_dir: Path, code: int, environment: Mapping[str, str] = os.environ) -> None:
    """Write how this worker ends. A full disk must not hide the error that is under way."""
    report = ExitReport(
        rank=int(environment.get("RANK", "0")),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
        code=code,
        time_s=time.time(),
    )
    path = launch_dir / "exits" / f"attempt_{report.attempt}_rank_{report.rank}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(asdict(report)))


def read_reports(launch_dir: Path) -> list[ExitReport]:
    """Return every report of this host, in the order of attempt and rank."""
    reports = []
    for path in (launch_dir / "exits").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            reports.append(ExitReport(**json.loads(path.read_text())))
    return sorted(reports, key=lambda report: (report.attempt, report.rank))


def find_user_error(reports: list[ExitReport]) -> ExitReport | None:
    """Return the report of the lowest rank with a user error, of the first attempt that has one."""
    return next((report for report in reports if report.is_user_error), None)
