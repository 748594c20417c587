import errno
import fcntl
import os
from pathlib import Path

import pytest

from deepseek.checkpoint.durable_file import BLOCK_BYTES, fingerprint, write_durably


def pattern(length):
    return bytes(range(251)) * (length // 251 + 1)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4097])
def test_the_file_holds_the_parts_and_has_the_hash_that_is_said(tmp_path, size):
    content = pattern(size)[:size]
    path = tmp_path / "file"
    parts = [content[:1], memoryview(content)[1:7], b"", content[7:]]
    written = write_durably(path, parts)
    assert path.read_bytes() == content
    assert written == fingerprint(path)
    assert written.bytes == size


def test_an_older_longer_file_is_overwritten_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    write_durably(path, [b"short"])
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("refused", ["fcntl", "write"])
def test_a_file_system_without_direct_io_is_written_all_the_same(tmp_path, monkeypatch, refused):
    write, control = os.write, fcntl.fcntl

    def refusing_write(descriptor, data):
        if control(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here")
        return write(descriptor, data)

    def refusing_control(descriptor, command, flags=0):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here")
        return control(descriptor, command, flags)

    if refused == "write":
        monkeypatch.setattr(os, "write", refusing_write)
    else:
        monkeypatch.setattr(fcntl, "fcntl", refusing_control)
    content = pattern(2 * BLOCK_BYTES + 10)
    write_durably(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content


def test_what_the_disk_takes_in_small_pieces_is_whole_in_the_end(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1_000_003]))
    content = pattern(2 * BLOCK_BYTES + 10)
    written = write_durably(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content
    assert written == fingerprint(tmp_path / "file")


def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        write_durably(Path("/dev/full"), [b"x"])
