"""The state of the kernel's clock, asked with the system call `adjtimex` and changing nothing."""

import ctypes
import sys
from dataclasses import dataclass

TIME_ERROR = 5
STA_UNSYNC = 0x0040


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time_s", ctypes.c_long),
        ("time_us", ctypes.c_long),
        ("tick", ctypes.c_long),
        ("rest", ctypes.c_long * 24),
    )


@dataclass(frozen=True)
class ClockState:
    """What the kernel believes of its clock.

    Attributes:
        is_synchronised: something such as NTP keeps it.
        max_error_us: bound of its error; grows by 500 us a second while nobody keeps it.
        estimated_error_us: what the error probably is.
    """

    is_synchronised: bool
    max_error_us: int
    estimated_error_us: int


def read_clock_state() -> ClockState | None:
    """Ask the kernel; `None` where it is not Linux or does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    state = adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    is_synchronised = state != TIME_ERROR and not timex.status & STA_UNSYNC
    return ClockState(is_synchronised, timex.maxerror, timex.esterror)
