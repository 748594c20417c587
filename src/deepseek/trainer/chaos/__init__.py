"""Faults on purpose: kill, corrupt, poison and starve a run, and see whether it keeps its promises.

`deepseek verify-resume` and `deepseek chaos` are the commands; the project's own fault tests use
the same parts.
"""

from deepseek.trainer.chaos.checks import CHECKS as CHECKS
from deepseek.trainer.chaos.checks import Check as Check
from deepseek.trainer.chaos.checks import CheckResult as CheckResult
from deepseek.trainer.chaos.outcome import Outcome as Outcome
from deepseek.trainer.chaos.outcome import differences as differences
from deepseek.trainer.chaos.outcome import read_outcome as read_outcome
from deepseek.trainer.chaos.trial import Factory as Factory
from deepseek.trainer.chaos.trial import run_to_end as run_to_end
from deepseek.trainer.chaos.trial import run_with_kills as run_with_kills
from deepseek.trainer.chaos.trial import start as start
from deepseek.trainer.chaos.verify import Verdict as Verdict
from deepseek.trainer.chaos.verify import verify_resume as verify_resume
