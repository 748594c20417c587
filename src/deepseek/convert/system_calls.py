"""A process that gives up, for good, what it needs to do harm: a seccomp filter of Linux.

After `forbid_harm` a process computes and reads files, and every call that would reach another
process, the network, or change anything on disk fails with EPERM. Files that are open already may
be written. Threads stay possible, new processes do not. Calls newer than these tables fail with
ENOSYS, as on a kernel that has none of them.
"""

import ctypes
import platform
import struct
import sys

from deepseek.errors import ConfigError

# Numbers of the calls that fail. Network; processes and signals; files and their attributes;
# mounts and namespaces; the kernel, its keys and clocks; shared memory; limits; terminals.
_FORBIDDEN = {
    "x86_64": (
        41, 42, 43, 44, 46, 49, 50, 53, 288, 307,
        57, 58, 59, 62, 101, 129, 200, 234, 297, 310, 311, 322, 424, 434, 438, 440,
        76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199,
        235, 258, 259, 260, 261, 263, 264, 265, 266, 268, 280, 303, 304, 316, 437, 452,
        155, 161, 165, 166, 272, 308, 428, 429, 430, 442,
        103, 159, 163, 164, 167, 168, 169, 170, 171, 175, 176, 179, 227, 246, 248, 249, 250, 298,
        305, 313, 320, 321, 323, 425, 426, 427,
        29, 30, 31, 64, 68, 69, 240, 241,
        141, 160, 302,
        16,
    ),
    "aarch64": (
        198, 199, 200, 201, 202, 203, 206, 211, 242, 269,
        117, 129, 130, 131, 138, 221, 240, 270, 271, 281, 424, 434, 438, 440,
        33, 34, 35, 36, 37, 38, 45, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 88, 264, 265, 276,
        437, 452,
        39, 40, 41, 51, 97, 268, 428, 429, 430, 442,
        60, 89, 104, 105, 106, 112, 116, 142, 161, 162, 170, 171, 217, 218, 219, 224, 225, 241, 266,
        273, 280, 282, 294, 425, 426, 427,
        180, 181, 186, 189, 190, 194, 195, 196,
        140, 164, 261,
        29,
    ),
}  # fmt: skip
_FIRST_UNKNOWN = 463  # setxattrat; from 424 on the numbers are the same everywhere
# open, openat: with the place of the argument that has the flags; clone, clone3.
_OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_WRITES = 0o3 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_CLONE_THREAD = 0x1_0000
_X32 = 0x4000_0000  # a second numbering of x86_64

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF_0000, 0x0005_0001, 0x0005_0026, 0x8000_0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}  # the number of seccomp() itself
_SET_FILTER, _ALL_THREADS = 1, 1


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def check_supported() -> None:
    """Raise `ConfigError` where there is no such filter."""
    if sys.platform != "linux" or platform.machine() not in _FORBIDDEN or sys.maxsize < 2**32:
        raise ConfigError(
            f"a pickled module is read only where a process can be shut in, not on {sys.platform}"
            f" {platform.machine()}",
            fix="use Linux on x86_64 or aarch64; or load it where you trust it, and give"
            " module.state_dict()",
        )


def forbid_harm() -> None:
    """Shut this process in. It cannot be undone.

    Raises:
        ConfigError: the system has no such filter.
        OSError: the kernel refuses it.
    """
    check_supported()
    machine = platform.machine()
    code = _encode(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    # every thread: libraries that are loaded have begun some, in the same memory
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        _SECCOMP[machine], _SET_FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


def _encode(machine: str) -> bytes:
    """Return the filter: instructions of (code, jump if true, jump if false, value)."""
    checks = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
              (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]  # fmt: skip
    if machine == "x86_64":
        checks += _if(_AT_LEAST, _X32, _EPERM)
    checks += _if(_AT_LEAST, _FIRST_UNKNOWN, _ENOSYS)
    checks += _if(_EQUAL, _CLONE3, _ENOSYS)  # C libraries then use clone, whose flags can be seen
    for number in _FORBIDDEN[machine]:
        checks += _if(_EQUAL, number, _EPERM)
    for number, place in _OPENS[machine]:
        checks += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS + 8 * place),
                   *_if(_ANY_BIT, _WRITES, _EPERM), (_RETURN, 0, 0, _ALLOW)]  # fmt: skip
    checks += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _ARGUMENTS),
               (_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _EPERM),
               (_RETURN, 0, 0, _ALLOW)]  # fmt: skip
    checks.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *check) for check in checks)


def _if(test: int, value: int, answer: int) -> list[tuple[int, int, int, int]]:
    return [(test, 0, 1, value), (_RETURN, 0, 0, answer)]
