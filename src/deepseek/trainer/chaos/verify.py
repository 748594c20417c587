"""Is a killed and resumed run the same as one that was not, bit for bit?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from deepseek.trainer.chaos.outcome import differences, read_outcome
from deepseek.trainer.chaos.trial import Factory, run_to_end, run_with_kills

MAX_ATTEMPTS = 5


@dataclass(frozen=True)
class Verdict:
    """What came of `verify_resume`.

    Attributes:
        num_steps: steps of each run.
        num_kills: kills that hit a living run.
        problems: what differs after kills; empty where the resume is exact.
        is_reproducible: whether two undisturbed runs are the same; looked at only where something
            differs.
    """

    num_steps: int
    num_kills: int
    problems: tuple[str, ...]
    is_reproducible: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return not self.problems


def verify_resume(
    factory: Factory,
    folder: Path,
    *,
    num_kills: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Train once undisturbed and once through kills, and compare weights, optimizer and metrics.

    Args:
        factory: makes the trainer, `factory(run_dir, resume)`; it should save often.
        folder: where the runs are written.
        num_kills: kills that are tried.
        seed: of the moments of the kills.
        say: told what happens.

    Raises:
        RuntimeError: a run ends with an error.
    """
    say("undisturbed run")
    whole_s = run_to_end(factory, folder / "whole" / "run")
    expected = read_outcome(folder / "whole" / "run")
    kills = f"{num_kills} kill{'' if num_kills == 1 else 's'}"
    say(f"{expected.step} steps in {whole_s:.1f} s; the same with {kills}")
    draws, num_hits = Random(seed), 0
    problems: list[str] = []
    for attempt in range(MAX_ATTEMPTS):
        killed = folder / f"killed_{attempt}" / "run"
        num_hits = run_with_kills(factory, killed, draws, num_kills, whole_s)
        if (problems := differences(expected, read_outcome(killed))) or num_hits == num_kills:
            break
        whole_s /= 2  # it was over before the last kill: what was compiled is in a cache now
    if not problems:
        return Verdict(expected.step, num_hits, ())
    say("they differ; is the run reproducible at all? Undisturbed once more")
    run_to_end(factory, folder / "again" / "run")
    is_reproducible = not differences(expected, read_outcome(folder / "again" / "run"))
    return Verdict(expected.step, num_hits, tuple(problems), is_reproducible)
