"""`python -m deepseek.launch.tied PID MODULE...`: run a module that is told if its parent ends.

The kernel could do it (`PR_SET_PDEATHSIG`), but it may send the signal once for every thread of the
dying parent, and torchrun, told to end while it ends, stays for ever.
"""

import os
import runpy
import signal
import sys
import threading
import time

PARENT_CHECK_S = 1.0


def main() -> None:
    """Run a module as `__main__`, with SIGTERM once process PID is no longer the parent."""
    parent = int(sys.argv[1])
    sys.argv = sys.argv[2:]
    watch_parent(parent, signal.SIGTERM)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def watch_parent(parent: int, number: signal.Signals) -> None:
    """Have a thread send this process a signal, once, after the process `parent` has ended."""
    threading.Thread(target=_watch, args=(parent, number), daemon=True).start()


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
