"""`deepseek launch` on one host: exit codes, signals, what is printed, and that nothing is left."""

import os
import signal

import pytest

SCRIPT = """\
import os, signal, sys, time
from deepseek.errors import DataError, PreemptedError
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("out of rank", rank, "of", os.environ["WORLD_SIZE"], sys.argv[1:])
print("attempt", attempt, "of rank", rank, file=sys.stderr)
"""
WAITING = """
def leave(number, frame):
    error = PreemptedError("stopped; saved step 7")
    error.exit_code = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}[number]
    raise error
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, leave)
print("ready", flush=True)
time.sleep(100)
"""
# rank 0, whose output is shown, has written its end before another rank has its own
WAIT_FOR_ALL = """
import pathlib
first = pathlib.Path(os.environ["DEEPSEEK_LAUNCH_DIR"], f"exits/attempt_{attempt}_rank_0.json")
while rank and not first.exists():
    time.sleep(0.01)
"""


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script without torch, which starts in a moment."""

    def write(body):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT + body)
        return path

    return write


def test_output_of_rank_0_is_shown_and_of_the_others_kept(launch, script, tmp_path):
    launcher = launch("--nproc", 2, "--log-dir", tmp_path / "logs", script(""), "--epochs", "3")
    assert launcher.wait() == 0
    assert launcher.out == "out of rank 0 of 2 ['--epochs', '3']\n"
    assert launcher.err == "attempt 0 of rank 0\n"
    kept = [path.read_text() for path in (tmp_path / "logs").rglob("stdout.log")]
    assert sorted(kept) == [f"out of rank {rank} of 2 ['--epochs', '3']\n" for rank in (0, 1)]


def test_temporary_folder_goes_when_all_went_well_and_stays_when_not(launch, script):
    good = launch(script(""))
    assert good.wait() == 0
    assert list(good.tmp.iterdir()) == []
    bad = launch(script("sys.exit(9)"))
    assert bad.wait() == 9
    [folder] = bad.tmp.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert f"the output of every rank is in {folder}" in bad.err


@pytest.mark.parametrize("code", [2, 3, 4, 5])
def test_user_error_is_not_tried_again(launch, script, code):
    body = f"{WAIT_FOR_ALL}print('WRONG', rank, file=sys.stderr); sys.exit({code})"
    launcher = launch("--nproc", 2, "--max-restarts", 3, script(body))
    assert launcher.wait() == code
    assert launcher.err.count("attempt") == 1
    assert launcher.err.count("WRONG") == 1


def test_error_of_all_ranks_is_shown_once_and_without_a_wall_of_torchrun(launch, script):
    body = WAIT_FOR_ALL + "raise DataError('image 7 is broken', fix='remove it')"
    launcher = launch("--nproc", 2, script(body))
    assert launcher.wait() == 3
    assert launcher.err.count("DataError: image 7 is broken\n  Fix: remove it") == 1
    for noise in ("ChildFailedError", "Traceback", "torch.distributed", "====="):
        assert noise not in launcher.err


def test_error_of_another_rank_is_shown_too(launch, script):
    body = "if rank == 1: raise DataError('shard 1 is broken')\ntime.sleep(30)"
    launcher = launch("--nproc", 2, script(body))
    assert launcher.wait() == 3
    assert "rank 1 failed (exit code 3); it printed last:" in launcher.err
    assert launcher.err.count("DataError: shard 1 is broken") == 1


def test_error_of_the_command_line_keeps_its_words_and_code(launch):
    launcher = launch("--nproc", 2, "train", "no_such_file.yaml")
    assert launcher.wait() == 2
    assert launcher.err.count("no_such_file.yaml does not exist") == 1
    assert "Traceback" not in launcher.err


def test_failure_that_passes_is_tried_again(launch, script):
    launcher = launch("--max-restarts", 2, script("sys.exit(1 if attempt < 2 else 0)"))
    assert launcher.wait() == 0
    assert [f"attempt {number}" in launcher.err for number in (0, 1, 2)] == [True] * 3


def test_traceback_of_a_script_is_shown_once(launch, script):
    launcher = launch(script("raise KeyError('lost')"))
    assert launcher.wait() == 1
    assert launcher.err.count("KeyError: 'lost'") == 1


def test_worker_that_was_killed_gives_the_code_of_its_signal(launch, script):
    launcher = launch("--nproc", 2, script("if rank: os.kill(os.getpid(), 9)\ntime.sleep(30)"))
    assert launcher.wait() == 137
    assert "rank 1 failed (exit code 137)" in launcher.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_signal_reaches_the_workers_and_their_code_comes_back(launch, script, wait, number, code):
    launcher = launch("--nproc", 2, "--max-restarts", 3, script(WAITING))
    wait(lambda: "ready" in launcher.out)
    _, workers = launcher.wait_for_workers(2)
    launcher.process.send_signal(number)
    assert launcher.wait() == code
    assert launcher.err.count("stopped; saved step 7") == 1
    assert "Traceback" not in launcher.err
    assert not any(map(alive, workers))


def test_sighup_saves(launch, script, wait):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be under nohup
    try:
        launcher = launch(script(WAITING))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait(lambda: "ready" in launcher.out)
    launcher.process.send_signal(signal.SIGHUP)
    assert launcher.wait() == 129
    assert "stopped; saved step 7" in launcher.err


def test_nohup_is_left_alone(launch, script, wait):
    launcher = launch(script("print('ready', flush=True); time.sleep(100)"), prefix=["nohup"])
    wait(lambda: "ready" in launcher.out)
    with open(f"/proc/{launcher.process.pid}/status") as file:
        [ignored] = [line.split()[1] for line in file if line.startswith("SigIgn")]
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1


def test_worker_that_does_not_end_in_time_is_killed_and_the_code_says_so(launch, script, wait):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(100)"
    launcher = launch("--grace-s", 1, script(body))
    wait(lambda: "ready" in launcher.out)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.wait() == 137


@pytest.mark.parametrize("victim", ["agent", "launcher"])
def test_nothing_outlives_its_parent(launch, script, wait, victim):
    launcher = launch("--nproc", 2, script("print('ready'); time.sleep(100)"))
    wait(lambda: "ready" in launcher.out)
    agent, workers = launcher.wait_for_workers(2)
    os.kill(agent if victim == "agent" else launcher.process.pid, signal.SIGKILL)
    wait(lambda: not any(map(alive, [agent, *workers])))
    assert launcher.wait() == (137 if victim == "agent" else -9)


def test_workers_save_when_their_launcher_is_killed(launch, script, wait, tmp_path):
    saved, armed = tmp_path / "saved", tmp_path / "armed"
    body = f"""
def save(number, frame):
    time.sleep(1)
    open({str(saved)!r} + str(rank), "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open({str(armed)!r} + str(rank), "w").close()
while not all(os.path.exists({str(armed)!r} + number) for number in "01"):
    time.sleep(0.01)
print("ready")
time.sleep(100)
"""
    launcher = launch("--nproc", 2, script(body))
    wait(lambda: "ready" in launcher.out)
    agent, workers = launcher.wait_for_workers(2)
    launcher.process.kill()
    wait(lambda: not any(map(alive, [agent, *workers])))
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]


def test_module_is_launched_by_its_name(launch, tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "some_module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    launcher = launch("-m", "some_module", "a", "--b")
    assert launcher.wait() == 0
    assert launcher.out == "__main__ ['a', '--b']\n"


def test_workers_find_threads_and_flight_recorder_set_up(launch, script):
    body = "print(*(os.environ[name] for name in ('OMP_NUM_THREADS', 'TORCH_FR_BUFFER_SIZE')))"
    launcher = launch(script(body), environment={"OMP_NUM_THREADS": "3", "PET_NNODES": "4"})
    assert launcher.wait() == 0
    assert "3 2000" in launcher.out


def test_launcher_imports_no_torch(launch, script):
    launcher = launch(script(""), environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert launcher.wait() == 0
    assert "deepseek.launch.supervisor" in launcher.err
    launchers_own = [line for line in launcher.err.splitlines() if line.startswith("import time")]
    assert not any(line.split("|")[-1].strip() == "torch" for line in launchers_own)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
