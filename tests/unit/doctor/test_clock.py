import pytest

from deepseek.doctor.adjtimex import ClockState, read_clock_state
from deepseek.doctor.machine import Output

SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
FREE = ClockState(False, 16_000_000, 16_000_000)


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({}, "ok", "at most 2 ms wrong"),
        ({"clock": ClockState(True, 3_000_000, 9)}, "warning", "wrong by 3.0 s"),
        ({"clock": FREE}, "warning", "nothing keeps the clock"),
        ({"clock": FREE, "commands": {"timedatectl": "yes\n"}}, "ok", "says timedatectl"),
        (
            {"clock": FREE, "commands": {"chronyc": "Leap status     : Normal"}},
            "ok",
            "says chronyc",
        ),
        ({"clock": FREE, "commands": {"chronyc": Output(1)}}, "warning", "set-ntp true"),
        ({"clock": FREE, "files": {"/.dockerenv": ""}}, "note", "on the host"),
    ],
)
def test_clock_is_kept(expect, facts, verdict, words):
    expect("clock.synchronised", facts, verdict, words)


@pytest.mark.parametrize(
    ("now", "verdict", "words"), [(4e9, "ok", "2096"), (0.0, "problem", "1970-01-01 00:00 UTC is")]
)
def test_clock_is_not_behind_what_is_installed(expect, now, verdict, words):
    expect("clock.plausible", {"now": now}, verdict, words)


@pytest.mark.parametrize(
    ("source", "verdict", "words"), [("tsc", "ok", "source tsc"), ("hpet", "warning", "hpet")]
)
def test_clock_runs_forward_and_is_cheap(expect, source, verdict, words):
    expect("clock.monotonic", {"files": {SOURCE: source}}, verdict, words)


def test_kernel_tells_the_state_of_its_clock():
    state = read_clock_state()
    assert state is None or state.max_error_us >= 0
