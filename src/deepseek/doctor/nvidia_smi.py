"""Asks `nvidia-smi`, and reads its tables."""

import csv
import re
from dataclasses import dataclass

from deepseek.doctor.machine import Machine, Output

FIELDS = (
    "index",
    "name",
    "driver_version",
    "persistence_mode",
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "temperature.gpu",
    "memory.used",
    "memory.total",
    "mig.mode.current",
    "clocks_throttle_reasons.hw_slowdown",
)
LINK = re.compile(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS|C2C")


@dataclass(frozen=True)
class Topology:
    """How the cards of a machine are connected.

    Attributes:
        gpus: names of the cards, in order.
        links: of each ordered pair of cards the kind of connection.
        nics: of each network card the kind of connection to every card.
    """

    gpus: tuple[str, ...]
    links: dict[tuple[str, str], str]
    nics: dict[str, tuple[str, ...]]


def query_cards(machine: Machine) -> list[dict[str, str]] | None:
    """Return the `FIELDS` of each card; `None` where there is no `nvidia-smi` or it fails."""
    query = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    output = machine.output(*query)
    if output is None or output.code != 0:
        return None
    rows = csv.reader(output.out.splitlines(), skipinitialspace=True)
    return [dict(zip(FIELDS, row, strict=True)) for row in rows if len(row) == len(FIELDS)]


def ask_nvidia_smi(machine: Machine) -> Output | None:
    """Return what plain `nvidia-smi` prints."""
    return machine.output("nvidia-smi")


def query_topology(machine: Machine) -> Topology | None:
    """Return how the cards are connected; `None` where nobody says."""
    output = machine.output("nvidia-smi", "topo", "-m")
    if output is None or output.code != 0:
        return None
    return parse_topology(output.out)


def parse_topology(text: str) -> Topology | None:
    """Read the matrix of `nvidia-smi topo -m`; `None` where there is none."""
    # The head row is underlined by escape sequences, also in a pipe.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = [line.split() for line in plain.splitlines()]
    head = next((row for row in rows if row[:1] == ["GPU0"] and row[1:2] != ["X"]), None)
    if head is None:
        return None
    names = [word for word in head if re.fullmatch(r"(GPU|NIC)\d+|mlx\d+_\d+", word)]
    gpus = tuple(name for name in names if name.startswith("GPU"))
    links: dict[tuple[str, str], str] = {}
    nics: dict[str, tuple[str, ...]] = {}
    for row in rows:
        cells = row[1 : 1 + len(names)]
        if row is head or row[:1] == [] or row[0] not in names:
            continue
        if len(cells) < len(names) or not all(LINK.fullmatch(cell) for cell in cells):
            continue
        kinds = dict(zip(names, cells, strict=True))
        if row[0] in gpus:
            links |= {(row[0], other): kinds[other] for other in gpus if other != row[0]}
        else:
            nics[row[0]] = tuple(kinds[gpu] for gpu in gpus)
    return Topology(gpus, links, nics)
