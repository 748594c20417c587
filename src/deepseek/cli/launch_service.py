"""`deepseek launch --on kubernetes serve ...`: manifests of a service."""

from collections.abc import Mapping
from typing import Any

MEANINGLESS = {
    "nproc": "a pod serves with one process of each model: say --processes behind `serve`",
    "nnodes": "use --replicas",
    "kind": "a service is a Deployment",
    "runs_claim": "a service writes nothing",
    "runs_size": "a service writes nothing",
    "log_secret": "it is of `online serve`",
    "shm_size": "a service has no loader workers",
    "max_restarts": "Kubernetes starts pods again",
    "supervise": "there are no hosts that meet",
    "rdzv_id": "there are no hosts that meet",
    "rdzv_conf": "there are no hosts that meet",
    "timeout_s": "there are no hosts that meet",
}
"""Options of trainings, and why a service has none of them."""
DRAIN_S = 40
"""After the signal: requests that have begun are answered."""


def launch_service(options: Mapping[str, Any], given: set[str]) -> None:
    """Print the manifests of a service, or hand them to the cluster.

    Args:
        options: of `deepseek launch`.
        given: names of those that were on the command line.

    Raises:
        ConfigError: an option is missing, wrong, or means nothing here.
    """
    from deepseek.cli.apply_manifests import apply_manifests
    from deepseek.errors import ConfigError
    from deepseek.launch.pod import PodOptions
    from deepseek.launch.serving import (
        ServingOptions,
        parse_replicas,
        serving_manifests,
        serving_problems,
    )

    for name in sorted(given & MEANINGLESS.keys()):
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} means nothing for a service", fix=MEANINGLESS[name])
    for name, fix in (
        ("image", "build docker/Dockerfile.serve, push it, and name it with its version"),
        ("token_secret", "kubectl create secret generic tokens --from-file=tokens=tokens.txt"),
    ):
        if options[name] is None:
            option = name.replace("_", "-")
            raise ConfigError(
                f"serve on kubernetes without --{option}", fix=fix, see="docs/launch.md"
            )
    pod = PodOptions(
        name=options["name"], image=options["image"], namespace=options["namespace"],
        gpus=options["gpus"] or 0, cpus=options["cpus"] or 2, memory=options["memory"] or "4Gi",
        grace_s=options["grace_s"] if "grace_s" in given else DRAIN_S, user=options["user"],
        data_claim=options["data_claim"], egress=tuple(options["egress"] or ()),
    )  # fmt: skip
    low, high = parse_replicas(options["replicas"])
    words = tuple(options["program"][1:])
    serving = ServingOptions(
        words, options["token_secret"], low, high, tuple(options["ingress"] or ())
    )
    made = serving_manifests(pod, serving)
    apply_manifests(made, serving_problems(made), is_dry_run=options["dry_run"])
