import shlex

from deepseek.launch.agent import agent_command, agent_environment, show_command
from deepseek.launch.endpoint import Endpoint
from deepseek.launch.job import RENDEZVOUS_DEFAULTS, Job


def options(command):
    """Return the options of torchrun before the worker, by name."""
    words = command[4 : command.index("deepseek.launch.worker") - 1]
    return dict(zip(words[::2], words[1::2], strict=True))


def settings(command):
    return dict(entry.split("=") for entry in options(command)["--rdzv-conf"].split(","))


def test_single_host_meets_itself_at_a_free_port():
    command = agent_command(Job(("train", "a.yaml"), nproc=2, run_id="r"), "logs", None, True)
    found = options(command)
    assert found["--rdzv-endpoint"] == "localhost:0"
    assert (found["--nnodes"], found["--nproc-per-node"], found["--rdzv-id"]) == ("1", "2", "r")
    assert command[-3:] == ["deepseek.launch.worker", "train", "a.yaml"]


def test_host_of_the_store_and_address_are_told_and_not_guessed():
    endpoint = Endpoint("127.0.0.1", 4711)
    for is_host in (True, False):
        job = Job(("x.py",), max_nodes=2, min_nodes=1, endpoints=(endpoint,), max_restarts=5)
        command = agent_command(job, "logs", endpoint, is_host)
        assert settings(command)["is_host"] == str(int(is_host))
        assert options(command)["--local-addr"] == "127.0.0.1"
        assert options(command)["--nnodes"] == "1:2"
        assert options(command)["--max-restarts"] == "5"


def test_own_settings_of_the_rendezvous_win():
    job = Job(("x.py",), rendezvous={"read_timeout": "7", "join_timeout": "8"}, timeout_s=9)
    found = settings(agent_command(job, "logs", None, True))
    assert found == {**RENDEZVOUS_DEFAULTS, "read_timeout": "7", "join_timeout": "8"}


def test_variables_of_torchrun_do_not_reach_it_and_those_of_the_user_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = agent_environment(tmp_path, Job(("x.py",)))
    assert "PET_NNODES" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"


def test_command_that_is_shown_is_the_one_that_is_run():
    job = Job(("s.py", "two words", "$HOME"), nproc=2, run_id="r")
    words = shlex.split(show_command(job).splitlines()[1])
    assert words == agent_command(job, "${DEEPSEEK_LAUNCH_DIR}/logs", None, True)
