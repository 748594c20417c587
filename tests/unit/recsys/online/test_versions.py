import shutil
import threading
import time
from pathlib import Path

import pytest

from deepseek.errors import ConfigError
from deepseek.recsys.online.versions import Pointer, Versions


def publish(versions, text):
    return versions.publish(lambda folder: (folder / "model.bin").write_text(text), {"n": text})


def test_a_version_answers_when_it_is_whole(tmp_path):
    versions = Versions(tmp_path / "versions")
    assert versions.current() == Pointer(0)
    assert publish(versions, "a") == 1
    with pytest.raises(RuntimeError):
        versions.publish(lambda folder: (_ for _ in ()).throw(RuntimeError()), {})
    assert versions.current() == Pointer(1)
    assert publish(versions, "b") == 2
    assert versions.numbers() == [1, 2]
    assert versions.about(2)["n"] == "b"


def test_a_rollback_takes_less_than_a_second_and_holds_until_released(tmp_path):
    versions = Versions(tmp_path / "versions")
    for text in "abc":
        publish(versions, text)
    began = time.monotonic()
    assert versions.roll_back() == Pointer(2, is_pinned=True)
    assert time.monotonic() - began < 20  # 1 s is promised, on a machine that does nothing else
    assert publish(versions, "d") is None
    assert versions.current().version == 2
    assert versions.roll_back(to=1) == Pointer(1, is_pinned=True)
    assert versions.release() == Pointer(1)
    assert publish(versions, "e") == 4


def test_what_is_not_there_cannot_be_rolled_back_to(tmp_path):
    versions = Versions(tmp_path / "versions")
    with pytest.raises(ConfigError, match="no version before this one"):
        versions.roll_back()
    publish(versions, "a")
    with pytest.raises(ConfigError, match="no version 7"):
        versions.roll_back(to=7)


def test_old_versions_go(tmp_path):
    versions = Versions(tmp_path / "versions", keep=3)
    for number in range(6):
        publish(versions, str(number))
    assert versions.numbers() == [4, 5, 6]


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_version(tmp_path, monkeypatch):
    versions = Versions(tmp_path / "versions", keep=2)
    for text in "ab":
        publish(versions, text)
    remove, rmtree = "deepseek.recsys.online.versions.shutil.rmtree", shutil.rmtree
    monkeypatch.setattr(remove, lambda path, **how: (Path(path) / "about.json").unlink(True))
    publish(versions, "c")
    monkeypatch.setattr(remove, rmtree)
    assert versions.numbers() == [2, 3]
    with pytest.raises(ConfigError, match="no version 1"):
        versions.roll_back(to=1)
    publish(versions, "d")
    assert not list(versions.folder.glob(".gone_*"))
    assert [about["n"] for about in versions.known(range(9))] == ["c", "d"]


def test_a_reader_always_finds_a_whole_version(tmp_path):
    versions, found, ends = Versions(tmp_path / "versions"), set(), threading.Event()
    publish(versions, "1")

    def read():
        while not ends.is_set():
            number = versions.current().version
            found.add((number, (versions.path(number) / "model.bin").read_text()))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2, 12):
        publish(versions, str(number))
    ends.set()
    thread.join()
    assert found
    assert all(str(number) == text for number, text in found)
