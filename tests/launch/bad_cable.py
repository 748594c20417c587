"""A cable between two network namespaces that loses frames and delays the others.

    python bad_cable.py NAMESPACE DEVICE NAMESPACE DEVICE LOSS DELAY_S

Each end is a TAP device in its namespace. It stands for `tc netem`, which many kernels lack.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
CLONE_NEWNET = 0x40000000
FRAME = 65536


def plug_in(namespace, device):
    """Return the file of a new TAP device in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return file


def carry(ends, loss, delay_s):
    """Carry frames from each end to the other, for ever."""
    draws, under_way, number = random.Random(0), [], 0
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 1.0
        for end in select.select(ends, [], [], wait)[0]:
            frame = os.read(end, FRAME)
            if draws.random() >= loss:
                number += 1
                other = ends[1] if end == ends[0] else ends[0]
                heapq.heappush(under_way, (time.monotonic() + delay_s, number, other, frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # the device is down, or full: one more is lost
                os.write(end, frame)


if __name__ == "__main__":
    first, second = plug_in(*sys.argv[1:3]), plug_in(*sys.argv[3:5])
    print("plugged in", flush=True)
    carry([first, second], float(sys.argv[5]), float(sys.argv[6]))
