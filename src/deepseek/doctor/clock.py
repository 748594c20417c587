"""Whether the clock is kept right, runs forward, and is cheap to read."""

import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.machine import Machine

MAX_ERROR_S = 1.0
NUM_READINGS = 2000
SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies")
SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


@check(
    "clock.synchronised",
    asks="NTP keeps the clock: logs of several machines are compared by it, certificates too",
    mend="sudo timedatectl set-ntp true, or start chrony",
)
def check_synchronised(machine: Machine) -> Findings:
    """Ask the kernel, else timedatectl, else chronyc."""
    state = machine.clock_state()
    if state is not None and state.is_synchronised:
        error_s = state.max_error_us / 1e6
        if error_s > MAX_ERROR_S:
            yield warning(f"the clock may be wrong by {error_s:.1f} s", error_s)
        else:
            yield ok(f"the clock is kept, at most {error_s * 1000:.0f} ms wrong", error_s)
        return
    said = machine.output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if said is not None and said.out.strip() == "yes":
        yield ok("the clock is kept, says timedatectl", True)
        return
    tracking = machine.output("chronyc", "-n", "tracking")
    if tracking is not None and tracking.code == 0 and "Leap status     : Normal" in tracking.out:
        yield ok("the clock is kept, says chronyc", True)
    elif machine.inside() is not None:
        mend = f"on the host: {check_synchronised.mend}"
        yield note("the kernel does not say that NTP keeps the clock of the host", False, mend=mend)
    elif state is None and said is None and tracking is None:
        yield note("nobody here says whether the clock is kept", None)
    else:
        yield warning("nothing keeps the clock", False)


@check(
    "clock.plausible",
    asks="the clock is not behind the files that are installed",
    mend="set it: sudo timedatectl set-ntp true, or sudo date --set",
)
def check_plausible(machine: Machine) -> Findings:
    """A clock that is behind breaks TLS, and the order of checkpoints."""
    now = machine.now()
    installed = Path(__file__).stat().st_mtime
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if now < installed - 86400:
        behind_days = (installed - now) / 86400
        yield problem(f"{shown} is {behind_days:.0f} days before this library was installed", now)
    else:
        yield ok(shown, now)


@check(
    "clock.monotonic",
    asks="the clock that measures time never goes back, and is cheap to read",
    mend="boot with clocksource=tsc tsc=reliable, or take another kind of virtual machine",
)
def check_monotonic(machine: Machine) -> Findings:
    """Read it many times; and look at its source."""
    readings = [time.perf_counter_ns() for _ in range(NUM_READINGS)]
    steps = [after - before for before, after in pairwise(readings)]
    source = machine.read(SOURCE)
    if min(steps) < 0:
        yield problem(f"the clock went back by {-min(steps)} ns ({source})", source)
    elif source in SLOW_SOURCES:
        yield warning(f"the clock source is {source}: each reading costs microseconds", source)
    else:
        yield ok(f"it runs forward (source {source or 'unknown'})", source)


CHECKS = (check_synchronised, check_plausible, check_monotonic)
