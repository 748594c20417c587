import pytest

from deepseek.errors import ConfigError
from deepseek.launch.endpoint import Endpoint
from deepseek.launch.job import Job, check_program, parse_nodes, parse_nproc, parse_rendezvous

A, B = Endpoint("a"), Endpoint("b")


@pytest.mark.parametrize(("text", "nodes"), [("1", (1, 1)), ("4", (4, 4)), ("1:2", (1, 2))])
def test_hosts_are_a_number_or_a_range(text, nodes):
    assert parse_nodes(text) == nodes
    assert Job(("x.py",), 1, *nodes, endpoints=(A,)).nnodes == text


@pytest.mark.parametrize("text", ["", "0", "-1", "2:1", "0:2", "a", "1:", ":2", "1:2:3", "1.5"])
def test_other_numbers_of_hosts_are_refused(text):
    with pytest.raises(ConfigError, match=f"--nnodes={text} is not"):
        parse_nodes(text)


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "1.5"])
def test_other_numbers_of_processes_are_refused(text):
    with pytest.raises(ConfigError, match=f"--nproc={text} is not"):
        parse_nproc(text)


def test_auto_is_one_process_for_each_visible_gpu_and_one_without(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert parse_nproc("auto") == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert parse_nproc("auto") == 1


def test_rendezvous_settings_are_pairs():
    assert parse_rendezvous("a=1, b=x=y") == {"a": "1", "b": "x=y"}
    assert parse_rendezvous("") == {}


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=1,b"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(ConfigError, match="--rdzv-conf="):
        parse_rendezvous(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_nodes": 2}, "without --rdzv-endpoint"),
        ({"supervised": True}, "--supervise without --rdzv-endpoint"),
        ({"endpoints": (A, B)}, "2 rendezvous endpoints without --supervise"),
        ({"run_id": "a/b"}, "--rdzv-id=a/b is not a name"),
        ({"run_id": "-x"}, "--rdzv-id=-x"),
    ],
)
def test_jobs_that_cannot_run_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Job(("x.py",), **settings)


@pytest.mark.parametrize(
    ("program", "words"),
    [((), "nothing to launch"), (("-m",), "nothing"), (("--nprocs", "2"), "--nprocs is no option")],
)
def test_programs_that_cannot_start_are_refused(program, words):
    with pytest.raises(ConfigError, match=words):
        check_program(program)
