import io
import os

from deepseek.trainer.console import Console, format_count, format_seconds

RECORD = {
    "epoch": 1, "loss": 0.5, "val_loss": 0.4, "val_accuracy": 0.9, "lr": 1e-3,
    "samples_per_s": 1234.0, "data_wait_share": 0.04, "memory_bytes": 2**29,
    "grad_norm": 1.0, "epoch_s": 3.0, "eta_s": 100.0,
}  # fmt: skip


def test_off_a_terminal_there_is_no_escape_code_and_the_table_lines_up(tmp_path):
    stream = io.StringIO()
    console = Console(tmp_path / "log.txt", stream=stream)
    console.epoch(RECORD, 5, "val_accuracy", is_best=True)
    console.progress("2/5", 3, 10, "loss 0.1")
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    header, row = text.splitlines()[:2]
    assert len(header) == len(row)
    assert "data%" in header
    assert "0.9000*" in row
    assert (tmp_path / "log.txt").read_text() == text


def test_a_name_that_is_no_utf_8_is_shown_escaped(tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Console(tmp_path / "log.txt", stream=stream).line("skipped " + os.fsdecode(b"chat\xe9.png"))
    assert (tmp_path / "log.txt").read_text() == "skipped chat\\udce9.png\n"


def test_off_a_terminal_progress_waits_half_a_minute(tmp_path):
    console = Console(tmp_path / "log.txt", stream=io.StringIO())
    assert not console.wants_progress()
    console._lined_at -= 31
    assert console.wants_progress()


def test_numbers_read_well():
    assert [format_seconds(s) for s in (8.2, 76, 7500)] == ["8.2s", "1m16s", "2h05m"]
    assert format_count(11.2e6) == "11.2 M"
    assert format_count(1.82e9) == "1.82 G"
