"""Says who is missing where ranks wait for each other for too long.

A thread of each rank leaves a beat in the store that ranks met by, once a second: the step, what
the main thread is at and since when, and which collectives it has entered (torch's flight
recorder). Where a rank has been at one thing for longer than the limit (a micro-batch, a window of
an evaluation), it reads the beats of all, and ends with the names of those that have not come:
seconds after the limit, instead of torch's half an hour and a trace to be read by experts.

The limit is `start_timeout_s` until the first step of this process is done, for then models are
compiled and data sets opened, and where something is written; `timeout_s` elsewhere.
"""

import faulthandler
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deepseek.parallel.beat import Beat, describe_silence, listed, read_recorder

BEAT_S = 1.0
STALE_S = 3.5
SLOW_S = 2.0
"""Age from which a beat has the stack and the collectives, too."""
LATE_S = 3.0
"""How much longer a rank stays that is itself the late one: the others say it better."""
STACK_LINES = 4
PATIENT = ("a checkpoint", "the end of the run")
"""Phases in which a rank has work of its own that may take long."""
GONE = "the rank that kept the store of the run is gone, or does not answer"


class Place(NamedTuple):
    """What the main thread is at."""

    step: int
    phase: str
    since: float


class Watch:
    """Beats for one rank, and looks after the others when it waits.

    Args:
        rank: of this process.
        size: how many there are.
        store: a connection of its own to the store that ranks met by.
        name: of this set of processes.
        groups: name of a process group -> its axis, for messages.
        start_timeout_s, timeout_s: limits until the first step is done, and afterwards.
        on_hang: told what is said before the process ends.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store,
        name: str,
        *,
        groups: dict[str, str],
        start_timeout_s: float,
        timeout_s: float,
        on_hang: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder: Path | None = None
        self.on_hang = on_hang
        self._rank, self._size, self._store, self._name = rank, size, store, name
        self._groups = groups
        self._start_timeout_s, self._timeout_s = start_timeout_s, timeout_s
        self._place = Place(0, "the start", time.monotonic())
        self._num_beats = 0
        self._first_step: int | None = None  # that this process begins at
        self._has_stepped = False
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="watch", daemon=True)
        self._thread.start()

    def mark(self, phase: str, step: int | None = None) -> None:
        """Say what the main thread is at now; costs a microsecond."""
        last = self._place.step
        self._place = Place(last if step is None else step, phase, time.monotonic())
        if step is not None:
            self._first_step = step if self._first_step is None else self._first_step
            self._has_stepped = self._has_stepped or step > self._first_step

    def note_progress(self) -> None:
        """Say that the main thread has come further with what it is at: its time begins anew."""
        self._place = self._place._replace(since=time.monotonic())

    def close(self) -> None:
        """End the thread: nobody is waited for any more."""
        self._ended.set()
        self._thread.join(STALE_S)  # it may be asking a store that does not answer

    @property
    def limit_s(self) -> float:
        """Seconds that the main thread may be at one thing."""
        is_short = self._has_stepped and self._place.phase not in PATIENT
        return self._timeout_s if is_short else self._start_timeout_s

    # -- the thread --------------------------------------------------------------------------

    def _beat(self) -> None:
        pause = 0.0  # the first at once: who dies in the first second is known, too
        while not self._ended.wait(pause):
            pause = BEAT_S
            with suppress(RuntimeError):  # the store's host is gone: `explain` says so
                self._send()
            if self._age_s() > self.limit_s:
                self._end(self.explain())

    def _send(self) -> None:
        self._store.set(f"{self._name}/beat/{self._rank}", self._own_beat().to_json())

    def _age_s(self) -> float:
        return time.monotonic() - self._place.since

    def _own_beat(self) -> Beat:
        self._num_beats += 1
        place, age_s = self._place, self._age_s()
        stack, entered, waits = [], {}, None
        if age_s > SLOW_S:
            stack = self._stack()
            entered, waits = read_recorder()
        return Beat(self._num_beats, place.step, place.phase, age_s, stack, entered, waits)

    def _stack(self) -> list[str]:
        """Return the innermost lines of the main thread's stack, outermost first."""
        frame = sys._current_frames().get(self._main or 0)
        frames = traceback.extract_stack(frame) if frame is not None else []
        return [f"{f.filename}:{f.lineno} in {f.name}" for f in frames[-STACK_LINES:]]

    def explain(self) -> str:
        """Return which ranks are missing, and what each is at. Takes a few seconds."""
        found: list[str] = []
        asking = threading.Thread(target=self._ask, args=(found,), daemon=True)
        asking.start()
        asking.join(3 * STALE_S)  # a store whose host is frozen never answers
        return found[0] if found else GONE

    def _ask(self, found: list[str]) -> None:
        with suppress(RuntimeError):
            found.append(self._compare())

    def _compare(self) -> str:
        first = self._read()
        until = time.monotonic() + STALE_S
        while time.monotonic() < until:  # the others may be asking, too
            self._send()
            time.sleep(BEAT_S)
        others = [rank for rank in range(self._size) if rank != self._rank]
        last = self._read()
        text = describe_silence(self._rank, self._own_beat(), first, last, self._groups)
        if unheard := [rank for rank in others if rank not in last]:
            text += f"\n  rank {listed(unheard)} never said a word: it did not come so far"
        return text

    def _read(self) -> dict[int, Beat]:
        beats = {}
        for rank in range(self._size):
            key = f"{self._name}/beat/{rank}"
            if rank != self._rank and self._store.check([key]):
                beats[rank] = Beat.from_json(self._store.get(key))
        return beats

    def _end(self, text: str) -> None:
        if self._ended.is_set() or self._age_s() <= self.limit_s:
            return  # it went on while it was looked at
        if text.startswith("this rank"):
            time.sleep(LATE_S)
        sys.stderr.write(f"CommunicationError: {text}\n")
        sys.stderr.flush()
        self.on_hang(text)
        self._keep_stacks(text)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    def _keep_stacks(self, text: str) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank_{self._rank}.txt").open("w", encoding="utf-8") as file:
                file.write(text + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                entered, waits = read_recorder()
                file.write(f"\ncollectives entered by group: {json.dumps(entered)}\n{waits}\n")
        except OSError:  # the message is what counts
            return
