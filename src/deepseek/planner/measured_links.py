"""A cluster whose links were measured by `deepseek doctor --bandwidth --json`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.constants import CALIBRATION, Calibration


def apply_measurement(cluster: Cluster, path: Path, cal: Calibration = CALIBRATION) -> Cluster:
    """Return `cluster` with the bandwidth that was measured: between nodes, or within one.

    Predictions take the share of a link that a ring reaches; so what was reached is divided by it.

    Raises:
        ConfigError: the file is not what the command prints, has no all-reduce, or is of CPUs.
    """
    peak, num_hosts = _read_peak(path)
    if num_hosts > 1:
        return replace(cluster, node_bandwidth=peak / cal.node_share)
    gpu = replace(cluster.gpu, link_bandwidth=peak / cal.link_share)
    return replace(cluster, gpu=gpu)


def _read_peak(path: Path) -> tuple[float, int]:
    """The best bus bandwidth of an all-reduce, in bytes per second, and the number of hosts."""
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
        rates = [row["bus_gbs"] for row in facts["rows"] if row["collective"] == "all_reduce"]
        peak, num_hosts = 1e9 * max(rates), int(facts.get("num_hosts", 1))
        device = facts.get("device")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--bandwidth {path}: no measurement of an all-reduce can be read from it ({error}).",
            fix="write it by: deepseek doctor --bandwidth --json > FILE",
        ) from error
    if device == "CPU":
        raise ConfigError(
            f"--bandwidth {path}: device={device}: what processors exchange says nothing of GPUs.",
            fix="measure on a node with the GPUs: deepseek doctor --bandwidth --json > FILE",
        )
    if peak <= 0:
        raise ConfigError(
            f"--bandwidth {path}: bus_gbs={peak} must be above 0.", fix="measure anew"
        )
    return peak, num_hosts
