"""The bootstrap as a process of its own, as torchrun starts it."""

import os
import subprocess
import sys

import pytest

from deepseek.launch.exit_report import read_reports, write_report
from deepseek.launch.process import AGENT_PID, end_workers, living_workers, start_time


@pytest.fixture
def worker(tmp_path):
    """Return a function that runs a worker in the launch folder `tmp_path`."""

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "deepseek.launch.worker", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "DEEPSEEK_LAUNCH_DIR": str(tmp_path), "RANK": "3", **environment},
            timeout=60,
        )

    return run


@pytest.fixture
def script(tmp_path):
    def write(body):
        (tmp_path / "script.py").write_text(body)
        return "script.py"

    return write


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('words')", 1),
        ("raise KeyError(1)", 1),
        ("from deepseek.errors import CheckpointError; raise CheckpointError('torn')", 4),
    ],
)
def test_exit_code_is_kept_and_reported(worker, script, tmp_path, body, code):
    done = worker(script(body))
    assert done.returncode == code
    [report] = read_reports(tmp_path)
    assert (report.rank, report.code) == (3, code)


def test_error_of_ours_has_no_traceback_unless_it_is_asked_for(worker, script):
    body = "from deepseek.errors import DataError\nraise DataError('bad', fix='mend it')"
    assert worker(script(body)).stderr.startswith("DataError: bad\n  Fix: mend it")
    assert "Traceback" in worker(script(body), DEEPSEEK_DEBUG="1").stderr


@pytest.mark.parametrize(("code", "runs"), [(2, False), (5, False), (1, True), (143, True)])
def test_attempt_after_a_user_error_does_not_begin(worker, script, tmp_path, code, runs):
    write_report(tmp_path, code, {"RANK": "0"})
    done = worker(script("print('began')"), TORCHELASTIC_RESTART_COUNT="1")
    assert (done.returncode, done.stdout) == ((0, "began\n") if runs else (code, ""))


def test_first_attempt_does_not_heed_what_another_rank_has_just_reported(worker, script, tmp_path):
    write_report(tmp_path, 2, {"RANK": "0"})
    assert worker(script("print('began')")).stdout == "began\n"


def test_worker_of_another_agent_does_not_begin(worker, script, tmp_path):
    (tmp_path / AGENT_PID).write_text("1")
    done = worker(script("print('began')"))
    assert (done.returncode, done.stdout) == (137, "")


def test_variables_of_the_user_win(worker, script):
    body = "import os; print(os.environ['TORCH_FR_BUFFER_SIZE'], os.environ['OMP_NUM_THREADS'])"
    done = worker(script(body), TORCH_FR_BUFFER_SIZE="7", OMP_NUM_THREADS="5")
    assert done.stdout == "7 5\n"


def test_bootstrap_imports_no_torch(worker, script):
    assert worker(script("import sys; print('torch' in sys.modules)")).stdout == "False\n"


def test_deepseek_command_runs_by_its_name(worker):
    assert worker("version").stdout.startswith("deepseek ")
    assert worker("train", "missing.yaml").returncode == 2


def test_modules_next_to_a_script_can_be_imported(worker, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("VALUE = 4")
    (tmp_path / "sub" / "main.py").write_text("from beside import VALUE; print(VALUE, __name__)")
    assert worker("sub/main.py").stdout == "4 __main__\n"


def test_process_id_that_was_used_again_is_not_killed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        registered = tmp_path / "workers" / str(child.pid)
        registered.parent.mkdir()
        registered.write_text("0")  # the start of another process
        assert living_workers(tmp_path) == []
        assert end_workers(tmp_path) == []
        assert child.poll() is None
        registered.write_text(start_time(child.pid))
        assert living_workers(tmp_path) == [child.pid]
        assert end_workers(tmp_path) == []
        assert child.wait(10) == -9
    finally:
        child.kill()
        child.wait()
