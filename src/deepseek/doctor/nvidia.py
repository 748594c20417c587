"""The NVIDIA driver, the cards it drives, and their health."""

import re

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.graphics_cards import (
    count_cards,
    count_present,
    count_visible,
    device_files,
    given_by_slurm,
    pci_cards,
)
from deepseek.doctor.machine import Machine
from deepseek.doctor.nvidia_smi import ask_nvidia_smi, query_cards
from deepseek.doctor.torch_install import version_pair
from deepseek.doctor.torch_report import ask_torch

MIN_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""Least driver of each CUDA major version, by NVIDIA's rule of minor version compatibility."""

XIDS = {
    13: "an illegal access by a kernel, usually a bug in it",
    31: "a kernel read or wrote an unmapped page, usually a bug in it",
    43: "the card stopped working for one process, usually a bug in it",
    48: "a double-bit memory error: reset the card, and replace it if it comes back",
    63: "a memory row was retired: reset the card when idle",
    64: "a memory row could not be retired: replace the card",
    74: "an NVLink error: look at the links with nvidia-smi nvlink -e",
    79: "the card has fallen off the bus: power, heat or slot; restart the machine",
    92: "many corrected memory errors: watch this card",
    94: "a contained memory error: the process died, restart it",
    95: "an uncontained memory error: reset the card before using it again",
    119: "the card's own processor does not answer: restart the machine, update the driver",
    120: "the card's own processor failed: restart the machine, update the driver",
}
"""What the commonest of NVIDIA's Xid errors mean."""
HOT_CELSIUS = 85


def driver_version(machine: Machine) -> str | None:
    """Return the version of the loaded kernel driver, as `/proc` or else `nvidia-smi` says."""
    text = machine.read("/proc/driver/nvidia/version") or ""
    found = re.search(r"(?:Kernel Module\D*?|x86_64|aarch64)\s+(\d{3,}\.\d+(?:\.\d+)?)", text)
    if found:
        return found[1]
    cards = query_cards(machine)
    return cards[0]["driver_version"] if cards else None


@check(
    "nvidia.driver",
    asks="the NVIDIA driver is loaded, and new enough for the CUDA that torch brings",
    mend="install the driver (580 or newer for CUDA 13, 525 for 12), then restart the machine",
)
def check_driver(machine: Machine) -> Findings:
    """The driver against the CUDA runtime inside the torch wheel."""
    version = driver_version(machine)
    output = ask_nvidia_smi(machine)
    said = "" if output is None else f"{output.out}\n{output.err}"
    if "version mismatch" in said:
        mend = "restart the machine: the driver was updated while the old one is still loaded"
        yield problem("driver and its library are of two versions", said.strip()[:300], mend=mend)
        return
    if version is None:
        if pci_cards(machine) and machine.inside() is None:
            yield problem("there is an NVIDIA card, and no driver is loaded", None)
        return
    cuda = ask_torch(machine).cuda
    value = {"driver": version, "cuda": cuda}
    major = version_pair(cuda)[0] if cuda else 0
    least = MIN_DRIVERS.get(major)
    if least and version_pair(version) < least:
        what = f"driver {version} is too old for the CUDA {cuda} of torch: it wants {least[0]}"
        mend = f"update the driver to {least[0]} or newer, or install a torch for an older CUDA"
        yield problem(f"{what} or newer", value, mend=mend)
    else:
        yield ok(f"driver {version}" + (f", torch brings CUDA {cuda}" if cuda else ""), value)


@check(
    "nvidia.devices",
    asks="every card on the bus has its device file",
    mend="run nvidia-modprobe -u -c=0, or start the container with --gpus all",
)
def check_devices(machine: Machine) -> Findings:
    """Cards on the bus against those in `/dev`."""
    cards, files = pci_cards(machine), device_files(machine)
    smi = query_cards(machine)
    if not cards and not files:
        yield ok("no NVIDIA card here: training runs on the CPU", 0)
        return
    value = {"bus": len(cards), "dev": len(files), "nvidia_smi": None if smi is None else len(smi)}
    given = given_by_slurm(machine)
    wanted = len(files)
    if given is not None:  # cards of other jobs, or of another task of this one, need not answer
        wanted = min(wanted, given, count_visible(machine))
    if smi is not None and len(smi) < wanted:
        mend = "look for Xid errors with dmesg, then restart the machine"
        yield problem(f"{len(smi)} of {wanted} cards answer", value, mend=mend)
    elif machine.inside() is None and len(files) < len(cards):
        yield problem(f"{len(cards)} card(s) on the bus, {len(files)} in /dev", value)
    elif files:
        yield ok(f"{len(files)} card(s) in /dev, {len(cards)} on the bus", value)


@check(
    "nvidia.container",
    asks="a container was given the cards of its host",
    mend="install the NVIDIA container toolkit on the host, and start with --gpus all"
    " (Kubernetes: limits: nvidia.com/gpu, and the device plug-in)",
)
def check_container(machine: Machine) -> Findings:
    """A container sees the bus of its host, but not the cards."""
    inside = machine.inside()
    if inside is None or not pci_cards(machine):
        return
    hidden = machine.env.get("NVIDIA_VISIBLE_DEVICES")
    if device_files(machine):
        yield ok("the container was given cards of its host", hidden)
    elif hidden in ("void", "none"):
        mend = "ask for cards: --gpus all, or limits: nvidia.com/gpu"
        yield problem(f"NVIDIA_VISIBLE_DEVICES={hidden} hides the cards", hidden, mend=mend)
    else:
        yield problem("the host has NVIDIA cards, this container has none", hidden)


@check(
    "nvidia.visible_devices",
    asks="CUDA_VISIBLE_DEVICES names cards that exist, each once",
    mend="unset CUDA_VISIBLE_DEVICES, or give the numbers that nvidia-smi shows",
)
def check_visible_devices(machine: Machine) -> Findings:
    """Oddities of CUDA_VISIBLE_DEVICES: a wrong entry hides all that come after it."""
    given = machine.env.get("CUDA_VISIBLE_DEVICES")
    present = count_present(machine)
    if given is None:
        return
    words = [word.strip() for word in given.split(",")]
    numbers = [int(word) for word in words if word.isdigit()]
    if given.strip() in ("", "-1"):
        verdict = problem if count_cards(machine) else note
        yield verdict(f"CUDA_VISIBLE_DEVICES={given!r} hides every card", given)
    elif len(words) != len(set(words)):
        yield problem(f"CUDA_VISIBLE_DEVICES={given!r} names a card twice: none is seen", given)
    elif any(number >= present for number in numbers) and present:
        wrong = next(number for number in numbers if number >= present)
        what = f"CUDA_VISIBLE_DEVICES={given!r}: there is no card {wrong} among {present}"
        yield problem(f"{what}, and those behind it are not seen", given)
    elif "" in words or given != given.strip():
        yield warning(f"CUDA_VISIBLE_DEVICES={given!r} has an empty entry: the rest is cut", given)
    else:
        yield ok(f"CUDA_VISIBLE_DEVICES={given}", given)


@check(
    "nvidia.health",
    asks="no card has memory errors, a pending reset, or is slowed down by heat or power",
    mend="drain the machine, run nvidia-smi --gpu-reset, and replace a card that fails again",
)
def check_health(machine: Machine) -> Findings:
    """ECC errors, remapped rows, throttling."""
    cards = query_cards(machine)
    if not cards:
        return
    is_sound = True
    for card in cards:
        faults = []
        errors = card["ecc.errors.uncorrected.volatile.total"]
        if errors.isdigit() and int(errors):
            faults.append(f"{errors} uncorrected memory errors")
        faults += [
            f"row remapping {kind}"
            for kind in ("pending", "failure")
            if card[f"remapped_rows.{kind}"].lower() in ("1", "yes")
        ]
        if faults:
            is_sound = False
            yield problem(f"GPU {card['index']} {card['name']}: {', '.join(faults)}", card)
        hot = card["temperature.gpu"]
        slowed = card["clocks_throttle_reasons.hw_slowdown"].lower() == "active"
        if slowed or (hot.isdigit() and int(hot) >= HOT_CELSIUS):
            is_sound = False
            what = f"GPU {card['index']}: {hot} C" + (", slowed down by the hardware" * slowed)
            yield warning(what, card, mend="look after cooling and power of the machine")
    if is_sound:
        yield ok(f"{len(cards)} card(s) without memory errors", [card["name"] for card in cards])


@check(
    "nvidia.memory",
    asks="the cards' memory is free before training begins",
    mend="nvidia-smi shows who uses it: end that process, or choose other cards",
)
def check_memory(machine: Machine) -> Findings:
    """Memory that somebody else already uses."""
    for card in query_cards(machine) or ():
        used, total = card["memory.used"], card["memory.total"]
        if used.isdigit() and total.isdigit() and int(used) > 0.1 * int(total):
            what = f"GPU {card['index']}: {used} of {total} MiB are in use already"
            yield warning(what, {"used_mib": int(used), "total_mib": int(total)})


@check(
    "nvidia.persistence",
    asks="the driver stays loaded between processes (persistence mode)",
    mend="sudo systemctl enable --now nvidia-persistenced, or sudo nvidia-smi -pm 1",
)
def check_persistence(machine: Machine) -> Findings:
    """Without it each start of a process waits seconds for the card."""
    cards = query_cards(machine) or []
    off = [card["index"] for card in cards if card["persistence_mode"] == "Disabled"]
    if off:
        mend = "sudo nvidia-smi -pm 1 makes each start some seconds faster"
        yield note(f"persistence mode is off on GPU {', '.join(off)}", off, mend=mend)
    elif cards:
        yield ok("persistence mode is on", [])


@check(
    "nvidia.mig",
    asks="no card is cut into MIG slices unknown to you",
    mend="training over several cards needs MIG off: sudo nvidia-smi -mig 0",
)
def check_mig(machine: Machine) -> Findings:
    """NCCL does not connect slices of one card."""
    cards = query_cards(machine) or []
    cut = [card["index"] for card in cards if card["mig.mode.current"] == "Enabled"]
    if cut:
        yield warning(f"GPU {', '.join(cut)} is cut into MIG slices, which NCCL cannot join", cut)


@check(
    "nvidia.xid",
    asks="the kernel log holds no Xid errors of the cards",
    mend="look the number up in NVIDIA's Xid catalogue; restart the machine",
)
def check_xid(machine: Machine) -> Findings:
    """Xid errors, and what the commonest of them mean."""
    if not count_cards(machine):
        return
    output = machine.output("dmesg", "--kernel")
    if output is None or output.code != 0:
        yield note(
            "the kernel log cannot be read", mend="sudo dmesg | grep -i xid shows Xid errors"
        )
        return
    counts: dict[int, int] = {}
    for number in re.findall(r"NVRM: Xid.*?: (\d+),", output.out):
        counts[int(number)] = counts.get(int(number), 0) + 1
    for number, count in sorted(counts.items()):
        meaning = XIDS.get(number, "see NVIDIA's Xid catalogue")
        verdict = warning if number in (13, 31, 43, 63, 92) else problem
        yield verdict(f"{count} x Xid {number}: {meaning}", {"xid": number, "count": count})
    if not counts:
        yield ok("no Xid error in the kernel log", {})


CHECKS = (
    check_driver,
    check_devices,
    check_container,
    check_visible_devices,
    check_health,
    check_memory,
    check_persistence,
    check_mig,
    check_xid,
)
