"""Whether Python, torch and torchvision are there, import, and belong together."""

import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.graphics_cards import count_cards
from deepseek.doctor.machine import Machine
from deepseek.doctor.torch_report import ask_torch
from deepseek.version import __version__

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
TORCHVISION_OFFSET = 15
"""torch 2.N goes with torchvision 0.(N + 15)."""

REASONS = (
    (
        r"libcud|libcublas|libnccl|libcufft|libnv|libcusparse|libcusolver",
        "a CUDA library is missing or of another version: remove LD_LIBRARY_PATH, then"
        " pip install --force-reinstall torch",
    ),
    (
        r"GLIBC|GLIBCXX|CXXABI",
        "the system's C library is too old for this wheel: use a newer image",
    ),
    (
        r"undefined symbol",
        "libraries of two builds are mixed: remove LD_LIBRARY_PATH and LD_PRELOAD, then"
        " pip install --force-reinstall torch torchvision",
    ),
    (r"SIGILL", "the CPU lacks instructions that this build uses: take another machine or wheel"),
    (r"SIGKILL", "the process was killed, most likely for memory: give the job more"),
    (r"circular import|partially initialized", "a file of yours is called torch.py: rename it"),
    (r"not come to an end", "the file system is slow, or the driver hangs: run nvidia-smi"),
    (r"numpy", "numpy and torch do not fit: pip install --upgrade numpy torch"),
    (r"No module named 'torch'", "pip install torch torchvision"),
)
"""What a failed import says, and what to do about it; the first that fits."""


def version_pair(version: str) -> tuple[int, int]:
    """Return major and minor number of a version such as `2.14.1+cu130`.

    Example:
        >>> version_pair("2.14.1+cu130")
        (2, 14)
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def build_of(version: str) -> str:
    """Return the build of a wheel, `cu130` or `cpu`; empty where it is not marked."""
    return version.partition("+")[2]


@check(
    "python.version",
    asks="Python is 3.11 or newer",
    mend="make a virtual environment with Python 3.11 or newer",
)
def check_python(machine: Machine) -> Findings:
    """Python itself."""
    version = machine.python[1]
    shown = ".".join(map(str, version))
    if version < MIN_PYTHON:
        yield problem(f"Python {shown} is too old", shown)
    else:
        yield ok(f"Python {shown} ({machine.python[0]})", shown)


@check(
    "deepseek.version",
    asks="which version of this library answers",
    mend="pip install --force-reinstall --no-deps deepseek-framework",
)
def check_deepseek(machine: Machine) -> Findings:
    """This library, and whether its installation is of the same version."""
    del machine
    try:
        installed = installed_version("deepseek-framework")
    except PackageNotFoundError:
        yield note(
            f"deepseek {__version__}, used from its source without installation", __version__
        )
        return
    if installed == __version__:
        yield ok(f"deepseek {__version__}", __version__)
    else:
        what = f"deepseek {__version__} runs, but the installed metadata are of {installed}"
        yield warning(what, {"runs": __version__, "installed": installed})


@check(
    "torch.import",
    asks="torch imports, in a process of its own",
    mend="pip install --force-reinstall torch torchvision",
)
def check_import(machine: Machine) -> Findings:
    """Import torch in a child, and explain why it fails."""
    report = ask_torch(machine)
    if report.version:
        yield ok(f"torch {report.version} imports", report.version)
    else:
        reason = report.failure or "no reason given"
        mend = next((mend for word, mend in REASONS if re.search(word, reason)), "")
        yield problem(f"torch does not import: {reason}", reason, mend=mend)


@check(
    "torch.version", asks="torch is 2.11 or newer", mend="pip install --upgrade torch torchvision"
)
def check_torch_version(machine: Machine) -> Findings:
    """Compare torch with the least that we work with."""
    version = ask_torch(machine).version
    if version is None:
        return
    if version_pair(version) < MIN_TORCH:
        yield problem(f"torch {version} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}", version)
    else:
        yield ok(f"torch {version}", version)


@check(
    "torch.torchvision",
    asks="torchvision is of the release and the build that go with torch",
    mend="pip install --upgrade torch torchvision, both from the same index",
)
def check_torchvision(machine: Machine) -> Findings:
    """Torch 2.N goes with torchvision 0.(N + 15), and both are of one CUDA build."""
    report = ask_torch(machine)
    if report.version is None:
        return
    if "torchvision" not in report.facts:
        error = report.facts.get("torchvision_error") or report.failure or "no reason given"
        yield problem(f"torchvision does not import: {error}", error)
        return
    vision = str(report.facts["torchvision"])
    minor = version_pair(report.version)[1]
    value = {"torch": report.version, "torchvision": vision}
    builds = {build_of(report.version), build_of(vision)} - {""}
    if version_pair(vision) != (0, minor + TORCHVISION_OFFSET):
        wanted = f"0.{minor + TORCHVISION_OFFSET}"
        what = f"torchvision {vision} is not for torch {report.version}, which wants {wanted}"
        yield problem(what, value, mend=f"pip install 'torchvision=={wanted}.*'")
    elif len(builds) > 1:
        yield problem(
            f"torch {report.version} and torchvision {vision} are different builds", value
        )
    else:
        yield ok(f"torchvision {vision}", value)


@check(
    "torch.build",
    asks="torch is built for the accelerator that is in the machine",
    mend="pip uninstall -y torch torchvision && pip install torch torchvision"
    " --index-url https://download.pytorch.org/whl/cu130",
)
def check_build(machine: Machine) -> Findings:
    """A wheel for CPUs on a machine with a graphics card leaves the card unused."""
    report = ask_torch(machine)
    if report.version is None:
        return
    cards = count_cards(machine)
    hip = report.facts.get("hip")
    kind = f"CUDA {report.cuda}" if report.cuda else f"ROCm {hip}" if hip else "CPU only"
    value = {"cuda": report.cuda, "hip": hip, "nvidia_cards": cards}
    if cards and not report.cuda:
        yield problem(f"torch is built for {kind}, with {cards} NVIDIA card(s) here", value)
    else:
        yield ok(f"torch is built for {kind}; {cards} NVIDIA card(s) here", value)


@check(
    "torch.cuda",
    asks="torch reaches every card, and computes on it",
    mend="run nvidia-smi; then update the driver, or start the container with --gpus all",
)
def check_cuda(machine: Machine) -> Findings:
    """What torch sees of the cards, and its own words where it sees none."""
    report = ask_torch(machine)
    cards = count_cards(machine)
    if report.version is None or not report.cuda or not cards:
        return
    seen = report.facts.get("device_count", 0)
    value = {"seen": seen, "cards": cards, "devices": report.facts.get("devices", [])}
    words = str(report.facts.get("cuda_error") or report.facts.get("cuda_warning") or "")
    if re.search(r"system not yet initialized|802", words):
        mend = "start the fabric manager: sudo systemctl start nvidia-fabricmanager"
        yield problem(f"NVSwitch is not up: {words}", value, mend=mend)
    elif report.facts.get("cuda_error"):
        yield problem(f"torch cannot compute on the card: {words}", value)
    elif not seen and machine.env.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield problem(
            "torch sees no card: CUDA_VISIBLE_DEVICES hides all of them",
            value,
            mend="unset CUDA_VISIBLE_DEVICES",
        )
    elif not seen:
        yield problem(f"torch sees none of {cards} card(s): {words or 'it gives no reason'}", value)
    elif seen < cards and "CUDA_VISIBLE_DEVICES" not in machine.env:
        yield warning(f"torch sees {seen} of {cards} cards", value)
    else:
        names = ", ".join(dict.fromkeys(value["devices"]))
        yield ok(f"torch sees {seen} of {cards} card(s): {names}", value)


CHECKS = (
    check_python,
    check_deepseek,
    check_import,
    check_torch_version,
    check_torchvision,
    check_build,
    check_cuda,
)
