"""What `deepseek launch --on kubernetes` does with manifests, of a training or a service."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.launch.problem import Problem


def apply_manifests(made: list[dict], problems: Sequence["Problem"], *, is_dry_run: bool) -> None:
    """Print the manifests, or hand them to the cluster; warnings go to stderr.

    Raises:
        ConfigError: a problem is more than a warning.
    """
    from deepseek.errors import ConfigError
    from deepseek.launch.kubernetes import to_yaml
    from deepseek.launch.submission import submit

    for problem in problems:
        if problem.is_warning:
            print(f"warning: {problem}", file=sys.stderr)
    wrong = [str(problem) for problem in problems if not problem.is_warning]
    if wrong:
        raise ConfigError("\n".join(wrong), fix="change the options named above")
    text = to_yaml(made)
    print(text if is_dry_run else submit(["kubectl", "apply", "-f", "-"], text), end="")
