"""Files that can run code: whose they are, and which processor they are for."""

import pytest
import torch
from tests.unit.deploy.runtimes.test_runtimes import make_bound, write

from deepseek.deploy.artefact import load_engine, sha256
from deepseek.deploy.machine import processor_flags
from deepseek.deploy.runtimes import exported
from deepseek.errors import CheckpointError, ConfigError


def test_a_program_of_somebody_else_is_opened_by_its_hash_only(tmp_path, monkeypatch):
    engine = make_bound("resnet")
    path, _ = write(engine, "exported", tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "of_another_user"))
    opened = []
    monkeypatch.setattr(torch.export, "load", lambda *args: opened.append(args))
    with pytest.raises(CheckpointError, match="can run code when it is opened"):
        load_engine(path)
    with pytest.raises(CheckpointError, match="can run code when it is opened"):
        load_engine(path, trust="0" * 64)
    assert not opened
    monkeypatch.undo()
    load_engine(path, trust=sha256(path))


def test_a_changed_program_is_not_opened_even_by_its_hash(tmp_path, monkeypatch):
    path, _ = write(make_bound("resnet"), "exported", tmp_path)
    path.write_bytes(path.read_bytes() + b"\x00")
    monkeypatch.setattr(torch.export, "load", lambda *args: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match="is not what was exported"):
        load_engine(path, trust=sha256(path))


def test_a_library_for_another_processor_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(exported, "processor_flags", lambda: frozenset({"avx2"}))
    exported._check_instructions(tmp_path, "AVX2")
    with pytest.raises(CheckpointError, match="has no avx512, avx512_vnni"):
        exported._check_instructions(tmp_path, "AVX512 AVX512_VNNI")
    monkeypatch.setattr(exported, "processor_flags", frozenset)  # not Linux: unknown
    exported._check_instructions(tmp_path, "AVX512")
    assert processor_flags() >= frozenset()


def test_without_a_compiler_aoti_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="there is no no-such-compiler"):
        write(make_bound("resnet"), "aoti", tmp_path)
