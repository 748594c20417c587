"""Ranks as threads, which talk through torch's own stores; and two groups with one folder."""

import json
import os
import shutil
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import NamedTuple

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from deepseek.checkpoint import Checkpoint, CheckpointStore
from deepseek.checkpoint.crew import Crew
from deepseek.checkpoint.store import SPARE_BYTES, load_checkpoint
from deepseek.errors import CheckpointError
from deepseek.models.tensor_part import Place, TensorPart

SIZE = 3
STATE = {"losses": [1.0, 0.5]}
LONG_S = 60.0  # longer than `run_threads` waits: who waits for it fails
ENDS = "this rank ends, and waits for the others no longer"


def make_part(step, rank, size=SIZE):
    """What a rank saves: its two rows of a weight, and a number of its own."""
    whole = torch.arange(2.0 * size).view(size, 2) + step
    part = TensorPart(Place("w", (size, 2), (rank, 0)), whole[rank : rank + 1])
    return Checkpoint(step, {"model": {part.key: part.tensor}}, STATE, {"rank": rank})


def broken(step):
    """What a rank cannot write: the folder of the file is not there."""
    return Checkpoint(step, {"no/such/folder": {"w": torch.ones(1)}}, STATE)


def unforeseen(step):
    """What a rank fails to write in a way that no one thought of: JSON has no such thing."""
    return Checkpoint(step, {}, STATE, {"callback": object()})


def run_threads(functions, timeout_s=30.0):
    """Return what each function returned or raised, by rank."""
    found = [None] * len(functions)

    def run(rank, function):
        try:
            found[rank] = function()
        except Exception as error:
            found[rank] = error

    threads = [
        threading.Thread(target=run, args=(rank, function), daemon=True)
        for rank, function in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
        assert not thread.is_alive()
    return found


@pytest.fixture(params=["hash", "tcp"])
def connect(request):
    """Return a connection to one key-value store."""
    if request.param == "hash":
        store = HashStore()
        return lambda: store
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    return server.clone


@pytest.fixture
def crew(tmp_path, connect):
    """The stores of all ranks, over one folder."""
    return crew_of(tmp_path, connect)


def crew_of(folder, connect, timeout_s=10.0, group="one"):
    """The stores of all ranks."""
    return [
        CheckpointStore(folder, crew=Crew(rank, SIZE, connect(), timeout_s, group))
        for rank in range(SIZE)
    ]


def waiting_crew():
    """All ranks, which would wait long for each other; without a folder."""
    store = HashStore()
    return [Crew(rank, SIZE, store, LONG_S) for rank in range(SIZE)]


def save_all(stores, checkpoints):
    """Save on every rank at once, `None` on none; return what came of it."""
    return run_threads(
        [
            (lambda s=store, c=checkpoint: s.save(c)) if checkpoint is not None else lambda: None
            for store, checkpoint in zip(stores, checkpoints, strict=True)
        ]
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- one group -------------------------------------------------------------------------------


def test_ranks_save_one_checkpoint_together(crew, tmp_path):
    found = save_all(crew, [make_part(5, rank) for rank in range(SIZE)])
    assert found == [tmp_path / "step_5"] * SIZE
    assert names(tmp_path) == ["latest", "step_5"]
    loaded = load_checkpoint(tmp_path / "step_5")
    assert torch.equal(loaded.tensors["model"]["w"], torch.arange(6.0).view(3, 2) + 5)
    assert loaded.state == STATE
    assert loaded.own_state == {str(rank): {"rank": rank} for rank in range(SIZE)}


def test_one_manifest_lists_the_files_of_all_ranks(crew, tmp_path):
    save_all(crew, [make_part(5, rank) for rank in range(SIZE)])
    listed = json.loads((tmp_path / "step_5" / "manifest.json").read_text())["files"]
    assert sorted(listed) == sorted(
        [f"model.rank_{rank}.safetensors" for rank in range(SIZE)]
        + [f"own_state.rank_{rank}.json" for rank in range(SIZE)]
        + ["state.json"]
    )
    assert {*listed, "manifest.json"} == set(names(tmp_path / "step_5"))


def test_saves_follow_each_other_and_old_ones_are_rotated(crew, tmp_path):
    for step in (1, 2, 3, 3):  # a step may be saved anew
        found = save_all(crew, [make_part(step, rank) for rank in range(SIZE)])
        assert found == [tmp_path / f"step_{step}"] * SIZE
    assert names(tmp_path) == ["latest", "step_2", "step_3"]


@pytest.mark.parametrize("rank", range(SIZE))
def test_where_one_rank_fails_all_fail_and_nothing_is_published(rank, connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    save_all(crew, [make_part(1, each) for each in range(SIZE)])
    parts = [make_part(2, each) for each in range(SIZE)]
    parts[rank] = broken(2)
    found = save_all(crew, parts)
    assert all(isinstance(each, CheckpointError) for each in found)
    assert "No such file or directory" in found[rank].message
    assert "No such file or directory" in found[0].message
    crew[0].recover()  # a rank may have written to the folder as rank 0 deleted it
    assert names(tmp_path) == ["latest", "step_1"]
    load_checkpoint(tmp_path / "step_1")


def test_rank_0_says_which_rank_failed(connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    parts = [make_part(2, each) for each in range(SIZE)]
    parts[2] = broken(2)
    found = save_all(crew, parts)
    assert found[0].message.startswith(
        f"{tmp_path / 'step_2'} could not be saved: rank 2: [Errno 2] No such file or directory"
    )


@pytest.mark.parametrize("rank", range(SIZE))
def test_every_rank_learns_at_once_why_a_save_has_failed(rank, connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    parts = [make_part(2, each) for each in range(SIZE)]
    parts[rank] = broken(2)
    for each in save_all(crew, parts):
        assert "No such file or directory" in each.message


@pytest.mark.parametrize("rank", range(SIZE))
def test_an_unforeseen_error_on_one_rank_fails_all_at_once(rank, connect, tmp_path):
    parts = [make_part(2, each) for each in range(SIZE)]
    parts[rank] = unforeseen(2)
    found = save_all(crew_of(tmp_path, connect, LONG_S), parts)
    assert isinstance(found[rank], TypeError)
    assert "not JSON serializable" in str(found[0])
    assert all(isinstance(found[each], CheckpointError) for each in range(SIZE) if each != rank)
    assert [name for name in names(tmp_path) if name.startswith("step_")] == []


@pytest.mark.parametrize("error", [OSError, RuntimeError, TypeError, CheckpointError])
@pytest.mark.parametrize("rank", range(SIZE))
def test_the_error_of_a_rank_is_told_to_all_with_its_number(rank, error):
    def make_or_fail(own):
        if own == rank:
            raise error("out of luck")
        return {"rank": own}

    def save(crew):
        save = crew.begin(1)
        save.collect("files", lambda: make_or_fail(crew.rank))
        save.lead("end", lambda: None)

    found = run_threads([lambda each=each: save(each) for each in waiting_crew()])
    assert type(found[rank]) is error
    for each in set(range(SIZE)) - {rank}:
        assert isinstance(found[each], CheckpointError)
        passed_on = "rank 0: " if each > 0 < rank else ""
        assert found[each].message.startswith(f"{passed_on}rank {rank}: out of luck")


@pytest.mark.parametrize("name", ["begin", "end"])
def test_whatever_rank_0_meets_as_it_leads_is_told_to_all_at_once(name):
    def act():
        raise RuntimeError("out of luck")

    found = run_threads([partial(each.begin(1).lead, name, act) for each in waiting_crew()])
    assert isinstance(found[0], RuntimeError)
    for each in found[1:]:
        assert isinstance(each, CheckpointError)
        assert each.message == "rank 0: out of luck"


def test_a_folder_that_cannot_be_made_fails_all_ranks_at_once(connect, tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    crew = crew_of(tmp_path / "checkpoints", connect)
    found = save_all(crew, [make_part(1, rank) for rank in range(SIZE)])
    for each in found:
        assert isinstance(each, CheckpointError)
        assert "File exists" in each.message
    assert found[1].message.endswith(str(found[0].__cause__))


@pytest.mark.parametrize("fail", [broken, unforeseen])
@pytest.mark.parametrize("rank", range(SIZE))
def test_a_save_after_one_that_failed_is_whole(rank, fail, connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    parts = [make_part(2, each) for each in range(SIZE)]
    save_all(crew, [*parts[:rank], fail(2), *parts[rank + 1 :]])
    assert save_all(crew, parts) == [tmp_path / "step_2"] * SIZE
    load_checkpoint(tmp_path / "step_2")
    assert names(tmp_path) == ["latest", "step_2"]


def test_the_folder_stays_while_a_rank_still_writes(connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    unfinished, found = tmp_path / ".writing_1.one", []

    def slow():
        time.sleep(0.3)
        found.append(unfinished.exists())
        return {}

    crew[2]._write = lambda folder, checkpoint: slow()
    save_all(crew, [make_part(1, 0), broken(1), make_part(1, 2)])
    assert found == [True]
    assert not unfinished.exists()


@pytest.mark.parametrize("missing", range(SIZE))
def test_a_rank_that_never_comes_times_out_and_is_named(missing, connect, tmp_path, monkeypatch):
    monkeypatch.setattr("deepseek.checkpoint.crew.PART_S", 0.1)
    crew = crew_of(tmp_path, connect, timeout_s=1.5)
    parts = [make_part(1, rank) if rank != missing else None for rank in range(SIZE)]
    found = save_all(crew, parts)
    said = f"rank {missing} did not save within 1.5 s"
    for rank, each in enumerate(found):
        if rank != missing:
            assert isinstance(each, CheckpointError)
            if rank == 0 or missing == 0:
                assert each.message == f"{tmp_path / 'step_1'} could not be saved: {said}"
            else:
                assert each.message.endswith(f"could not be saved: rank 0: {said}")
    assert [name for name in names(tmp_path) if name.startswith("step_")] == []


@pytest.mark.parametrize(("limit_s", "shown"), [(0.2, "0.2 s"), (0.125, "0.125 s"), (0.0, "0 s")])
def test_the_limit_is_told_as_it_was_set(limit_s, shown, connect, tmp_path):
    found = save_all(crew_of(tmp_path, connect, limit_s), [None, make_part(1, 1), None])
    assert found[1].message.endswith(f"rank 0 did not save within {shown}")


def test_a_rank_that_gives_up_waits_for_nobody(connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    found = run_threads([lambda: crew[1].save(make_part(1, 1)), crew[1].crew.give_up])
    assert found[0].message == f"{tmp_path / 'step_1'} could not be saved: {ENDS}"


def test_where_rank_0_gives_up_the_others_end_at_once(connect, tmp_path):
    crew = crew_of(tmp_path, connect, LONG_S)
    crew[0].crew.give_up()
    found = save_all(crew, [make_part(1, 0), None, make_part(1, 2)])
    assert found[0].message.endswith(f"could not be saved: {ENDS}")
    assert isinstance(found[2], CheckpointError)
    assert [name for name in names(tmp_path) if name.startswith("step_")] == []


def test_where_rank_0_gives_up_the_others_are_told_why():
    crew = waiting_crew()
    crew[0].give_up()

    def save(crew):
        save = crew.begin(1)
        save.collect("files", dict)
        save.lead("end", lambda: None)

    found = run_threads([lambda: save(crew[0]), lambda: None, lambda: save(crew[2])])
    assert found[0].message == ENDS
    assert found[2].message == f"rank 0: {ENDS}"


def test_rank_0_stays_until_the_others_have_read_its_last_word():
    order = []

    def part(rank, save):
        if rank > 0:
            order.append(rank)
        save.part()
        if rank == 0:
            order.append(rank)

    saves = [each.begin(1) for each in waiting_crew()]
    run_threads([lambda r=rank, s=save: part(r, s) for rank, save in enumerate(saves)])
    assert sorted(order[:-1]) == [1, 2]
    assert order[-1] == 0


def test_rank_0_does_not_stay_for_ranks_that_are_gone(monkeypatch):
    monkeypatch.setattr("deepseek.checkpoint.crew.PART_S", 0.1)
    save = waiting_crew()[0].begin(1)
    assert run_threads([save.part]) == [None]


def test_a_save_ends_where_the_store_is_gone(tmp_path):
    class Gone:
        def set(self, key, value):
            raise torch.distributed.DistNetworkError("Broken pipe")

        def check(self, keys):
            self.set(keys, "")

    for rank in range(2):
        store = CheckpointStore(tmp_path, crew=Crew(rank, 2, Gone(), LONG_S))
        with pytest.raises(
            CheckpointError, match="the rank that kept the store of the run is gone"
        ):
            store.save(make_part(1, rank))


def test_a_store_that_goes_between_two_questions_is_gone():
    class Going:
        def set(self, key, value):
            raise torch.distributed.DistNetworkError("Connection reset by peer")

        def check(self, keys):
            return True

        def get(self, key):
            self.set(key, "")

    save = Crew(1, 2, Going(), LONG_S).begin(1)
    with pytest.raises(CheckpointError, match="the rank that kept the store of the run is gone"):
        save.lead("end", lambda: None)
    save.part()  # all is written: nothing is lost by a rank 0 that has left


def test_one_process_needs_no_store(tmp_path):
    save = Crew().begin(1)
    done = []
    save.lead("begin", lambda: done.append("led"))
    assert save.collect("files", lambda: {"a": 1}) == [{"a": 1}]
    save.abort("nobody hears it")
    save.part()
    assert done == ["led"]


# -- two groups ------------------------------------------------------------------------------

WATCHED = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir", "stat", "fsync")
TO_THE_END = 1 << 30


class Turns:
    """Lets threads work on files in turns: (name, number of operations), one after the other."""

    def __init__(self, schedule):
        self._schedule = [list(turn) for turn in schedule]
        self._changed = threading.Condition()
        self.log = []

    def before(self, operation):
        name = threading.current_thread().name
        with self._changed:
            if name not in ("old", "new"):
                return
            self._pass_on()
            while self._schedule and self._schedule[0][0] != name:
                assert self._changed.wait(10)
                self._pass_on()
            if self._schedule:
                self._schedule[0][1] -= 1
            self.log.append((name, operation))

    def _pass_on(self):
        while self._schedule and self._schedule[0][1] == 0:
            self._schedule.pop(0)
            self._changed.notify_all()

    def end(self, name):
        with self._changed:
            self._schedule = [turn for turn in self._schedule if turn[0] != name]
            self.log.append((name, "end"))
            self._changed.notify_all()


@contextmanager
def taking(turns):
    """Ask for a turn before each operation on the file system."""
    real = {name: getattr(os, name) for name in WATCHED}

    def watched(name):
        def operation(*args, **kwargs):
            turns.before(name)
            return real[name](*args, **kwargs)

        return operation

    try:
        for name in WATCHED:
            if name != "fsync":
                setattr(os, name, watched(name))
        os.fsync = lambda descriptor: None  # the order counts here, not the disk
        yield
    finally:
        for name, operation in real.items():
            setattr(os, name, operation)


def group_store(folder, group):
    return CheckpointStore(folder, crew=Crew(0, 1, None, group=group))


def whole(step, value):
    return Checkpoint(step, {"model": {"w": torch.full((2,), value)}}, {"value": value})


def interleave(folder, schedule, step, also_saves=False):
    """Let the old group save while a new one takes over; return the log, and what the old met.

    Args:
        folder: holds the checkpoint of step 1.
        schedule: turns of `old` and `new`.
        step: that the old group saves.
        also_saves: whether the new group goes on to save the same step.
    """
    turns, outcome = Turns(schedule), {}

    def old():
        try:
            outcome["old"] = group_store(folder, "old").save(whole(step, 2.0))
        except CheckpointError as error:
            outcome["old"] = error
        finally:
            turns.end("old")

    def new():
        try:
            store = group_store(folder, "new")
            store.take_over()
            turns.log.append(("new", "took over"))
            if also_saves:
                outcome["new"] = store.save(whole(step, 3.0))
        except Exception as error:
            outcome["new"] = error
        finally:
            turns.end("new")

    with taking(turns):
        threads = [threading.Thread(target=f, name=f.__name__, daemon=True) for f in (old, new)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    return turns.log, outcome


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of the old group with the checkpoint of step 1."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    store = group_store(folder, "old")
    store.take_over()
    store.save(whole(1, 1.0))
    return folder


def operations_of_save(saved, folder, step):
    """Count what the old group does on its own."""
    shutil.copytree(saved, folder)
    log, _ = interleave(folder, [("old", TO_THE_END), ("new", TO_THE_END)], step)
    return sum(who == "old" and what in WATCHED for who, what in log)


def assert_folder_is_sound(folder, steps):
    """Check that nothing is half written, and the newest checkpoint is one that a group wrote."""
    left = [name for name in names(folder) if name.startswith(".writing_") and "old" in name]
    assert left == []
    newest = group_store(folder, "new").load_latest()
    assert newest.step in steps
    assert float(newest.tensors["model"]["w"][0]) == newest.state["value"]
    assert newest.state["value"] in (1.0, 2.0, 3.0)


@pytest.mark.parametrize("step", [1, 2])
def test_a_group_that_was_replaced_at_any_point_publishes_nothing_more(step, saved, tmp_path):
    num_operations = operations_of_save(saved, tmp_path / "alone", step)
    assert num_operations > 20
    published = refused = 0
    for number in range(num_operations + 1):
        folder = shutil.copytree(saved, tmp_path / f"{number}")
        turns = [("old", number), ("new", TO_THE_END), ("old", TO_THE_END)]
        log, outcome = interleave(folder, turns, step)
        assert outcome.get("new") is None, outcome
        after = log[log.index(("new", "took over")) :]
        is_refused = isinstance(outcome["old"], CheckpointError)
        if is_refused:
            refused += 1
        else:  # its new name was there before
            published += 1
            replaced = [what for who, what in after if who == "old" and what == "rename"]
            assert replaced == []
        assert_folder_is_sound(folder, {1, step})
    assert published > 0
    assert refused > 10


def test_a_group_that_was_replaced_is_told_so(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    new, old = group_store(folder, "new"), group_store(folder, "old")
    assert (new.is_replaced(), old.is_replaced()) == (True, False)
    new.take_over()
    assert (new.is_replaced(), old.is_replaced()) == (False, True)
    assert not group_store(folder, "").is_replaced()  # a process that no launcher started
    with pytest.raises(CheckpointError, match="belongs to another group of processes"):
        group_store(folder, "old").save(whole(2, 2.0))
    assert names(folder) == ["fence", "latest", "step_1"]


def test_a_new_group_takes_over_what_was_left_unfinished(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    (folder / ".writing_2.old").mkdir()
    (folder / ".writing_2.old" / "model.safetensors").write_text("half")
    shutil.copytree(folder / ".writing_2.old", folder / ".discarded_0")
    (folder / "step_1").rename(folder / ".replaced_1")
    group_store(folder, "new").take_over()
    assert names(folder) == ["fence", "latest", "step_1"]


class Met(NamedTuple):
    """What came of one interleaving.

    Attributes:
        turns: operations of the old group, and of the new one, before the old one went on.
        old, new: what each returned or raised.
        left: folders that are unfinished, or were to be deleted.
        damaged: checkpoints that are not whole.
        newest: value of the checkpoint that a run would go on from; `None` without any.
    """

    turns: tuple[int, int]
    old: object
    new: object
    left: list[str]
    damaged: list[str]
    newest: float | None


@pytest.fixture(scope="module")
def interleavings(saved, tmp_path_factory):
    """Every way to stop the old group once and the new one once, by the step that is saved."""
    known = {}

    def interleavings(step):
        if step not in known:
            known[step] = list(interleave_all(saved, tmp_path_factory.mktemp("turns"), step))
        return known[step]

    return interleavings


def interleave_all(saved, root, step):
    for first in range(operations_of_save(saved, root / "alone", step) + 1):
        for second in count(1):
            folder = shutil.copytree(saved, root / f"{first}_{second}")
            turns = [("old", first), ("new", second), ("old", TO_THE_END), ("new", TO_THE_END)]
            log, outcome = interleave(folder, turns, step)
            yield look_at(folder, (first, second), outcome)
            shutil.rmtree(folder)
            if sum(who == "new" and what in WATCHED for who, what in log) <= second:
                break  # it has had no more to do


def look_at(folder, turns, outcome):
    damaged, newest = [], None
    for path in folder.glob("step_*"):
        try:
            load_checkpoint(path)
        except CheckpointError:
            damaged.append(path.name)
    left = [path.name for kind in ("writing", "discarded") for path in folder.glob(f".{kind}_*")]
    with warnings.catch_warnings(), suppress(CheckpointError):
        warnings.simplefilter("ignore", UserWarning)  # damaged ones are set aside
        newest = group_store(folder, "new").load_latest().state["value"]
    return Met(turns, outcome["old"], outcome.get("new"), left, damaged, newest)


@pytest.mark.parametrize("step", [1, 2])
def test_taking_over_leaves_nothing_unfinished_in_any_two_turns(step, interleavings):
    found = interleavings(step)
    assert len(found) > 200
    assert [met for met in found if met.left] == []


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_can_go_on_after_any_two_turns(step, interleavings):
    assert [met for met in interleavings(step) if met.newest not in (1.0, 2.0)] == []


@pytest.mark.parametrize("step", [1, 2])
def test_no_half_deleted_checkpoint_is_published_in_any_two_turns(step, interleavings):
    assert [met for met in interleavings(step) if met.damaged] == []


@pytest.mark.parametrize("step", [1, 2])
def test_taking_over_fails_in_no_two_turns(step, interleavings):
    assert [met for met in interleavings(step) if met.new is not None] == []


def test_what_the_new_group_has_saved_stays(saved, tmp_path):
    for number in range(operations_of_save(saved, tmp_path / "alone", 2) + 1):
        folder = shutil.copytree(saved, tmp_path / f"{number}")
        turns = [("old", number), ("new", TO_THE_END), ("old", TO_THE_END)]
        _, outcome = interleave(folder, turns, 2, also_saves=True)
        assert outcome["new"] == folder / "step_2", outcome
        newest = group_store(folder, "new").load_latest()
        assert (newest.step, newest.state["value"]) == (2, 3.0), number


def test_a_ranks_own_error_is_told_where_the_store_is_gone_too():
    class Gone:
        def set(self, key, value):
            raise torch.distributed.DistNetworkError("Broken pipe")

        def check(self, keys):
            self.set(keys, "")

    def fail():
        raise OSError("no space left on device")

    save = Crew(0, 2, Gone(), LONG_S).begin(1)
    with pytest.raises(OSError, match="no space left"):
        save.lead("begin", fail)
    with pytest.raises(OSError, match="no space left"):
        save.collect("files", fail)
    save.part()


@pytest.mark.parametrize("is_divided", [False, True])
def test_the_disk_must_have_room_for_whole_tensors_once(is_divided, tmp_path, monkeypatch):
    rows = SPARE_BYTES // 4
    whole = torch.zeros(SIZE * rows, 1)

    def part(rank):
        if not is_divided:
            return Checkpoint(1, {"model": {"w": whole} if rank == 0 else {}}, STATE)
        own = TensorPart(Place("w", (SIZE * rows, 1), (rank * rows, 0)), whole[:rows])
        return Checkpoint(1, {"model": {own.key: own.tensor}}, STATE)

    def save_with(free):
        usage = shutil._ntuple_diskusage(10 * free, 9 * free, free)
        monkeypatch.setattr("deepseek.checkpoint.store.shutil.disk_usage", lambda folder: usage)
        stores = [CheckpointStore(tmp_path, crew=each) for each in waiting_crew()]
        return save_all(stores, [part(rank) for rank in range(SIZE)])

    assert {path.name for path in save_with(whole.nbytes + SPARE_BYTES)} == {"step_1"}
    for error in save_with(whole.nbytes + SPARE_BYTES - 1):
        assert "the disk has" in error.message
