"""The NVIDIA cards of a machine, found without the driver: on the PCI bus and in `/dev`.

Inside a container the PCI bus shown is the host's, so a card on it need not be one that was given.
"""

import re

from deepseek import visible_cards
from deepseek.doctor.job import number
from deepseek.doctor.machine import Machine
from deepseek.doctor.nvidia_smi import ask_nvidia_smi

PCI = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"


def pci_cards(machine: Machine) -> list[str]:
    """Return the PCI addresses of NVIDIA display controllers."""
    return [
        address
        for address in machine.entries(PCI)
        if machine.read(f"{PCI}/{address}/vendor") == NVIDIA
        and (machine.read(f"{PCI}/{address}/class") or "").startswith(DISPLAY_CLASS)
    ]


def device_files(machine: Machine) -> list[str]:
    """Return the device files of single cards, `nvidia0` and so on."""
    return [name for name in machine.entries("/dev") if re.fullmatch(r"nvidia\d+", name)]


def given_by_slurm(machine: Machine) -> int | None:
    """Return how many of the machine's cards are of our job; `None` where Slurm does not say.

    The others may have their device files, which a job can see and not open (`ConstrainDevices`).
    """
    if "SLURM_JOB_ID" not in machine.env:
        return None
    given = number(machine.env.get("SLURM_GPUS_ON_NODE"))
    if given is None and "SLURM_JOB_GPUS" not in machine.env:
        output = ask_nvidia_smi(machine)
        if output is not None and "no devices were found" in output.out.lower():
            return 0
    return given


def count_present(machine: Machine) -> int:
    """Return how many cards the machine has, for whom ever: those given to us, or on the bus."""
    return len(device_files(machine)) or len(pci_cards(machine))


def count_cards(machine: Machine) -> int:
    """Return how many cards there are to be used: those given to us, else those on the bus."""
    present, given = count_present(machine), given_by_slurm(machine)
    return present if given is None else min(present, given)


def count_visible(machine: Machine) -> int:
    """Return how many of the cards given to us a process sees, by CUDA_VISIBLE_DEVICES."""
    given = machine.env.get("CUDA_VISIBLE_DEVICES")
    return visible_cards.count_visible(given, len(device_files(machine)))
