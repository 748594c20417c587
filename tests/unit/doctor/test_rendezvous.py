import pytest

RANGE = {"/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999"}
RANKS = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
NODE0 = {"node0": ["10.0.0.4"]}
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "MASTER_ADDR": "train-0.train"}


@pytest.mark.parametrize(
    ("env", "verdict", "words"),
    [
        ({}, "ok", "not started by torchrun"),
        ({**RANKS, **MASTER}, "ok", "rank 3 of 16"),
        ({"RANK": "0"}, "problem", "only RANK set"),
        ({**RANKS, **MASTER, "RANK": "16"}, "problem", "RANK=16 does not fit"),
        ({**RANKS, **MASTER, "RANK": "x"}, "problem", "no numbers"),
        (RANKS, "problem", "no MASTER_ADDR to meet at"),
    ],
)
def test_ranks_agree(expect, env, verdict, words):
    expect("rendezvous.ranks", {"env": env}, verdict, words)


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({}, None, ""),
        ({"env": MASTER, "names": NODE0, "connects": "open"}, "ok", "node0:29500 is reached"),
        ({"env": MASTER, "names": NODE0}, "note", "nobody listens at 29500 yet"),
        ({"env": MASTER, "names": NODE0, "connects": "timeout"}, "problem", "firewall"),
        ({"env": MASTER, "names": NODE0, "connects": "No route"}, "problem", "not reached: No"),
        ({"env": MASTER}, "problem", "MASTER_ADDR=node0 does not resolve"),
        ({"env": MASTER, "names": {"node0": None}}, "problem", "no name server answers"),
        ({"env": {**MASTER, "MASTER_ADDR": "node1"}}, "ok", "this machine, and the port is free"),
        (
            {"env": {**MASTER, "MASTER_ADDR": "node1"}, "listens": False},
            "problem",
            "port 29500 is in use",
        ),
        (
            {"env": {**MASTER, "MASTER_ADDR": "node1", "RANK": "0"}, "listens": False},
            "ok",
            "the job listens there",
        ),
        (
            {"env": {**RANKS, **MASTER, "MASTER_ADDR": "lo"}, "names": {"lo": ["127.0.0.1"]}},
            "problem",
            "each machine would meet itself alone",
        ),
        ({"env": {"MASTER_ADDR": "node1"}}, "note", "no MASTER_PORT is set"),
        ({"env": {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4"}}, "note", "--rdzv-endpoint"),
        ({"env": POD}, "problem", "headless service train: clusterIP: None"),
        ({"env": {"PET_RDZV_ENDPOINT": "node0:29400"}, "names": NODE0}, "note", "29400"),
    ],
)
def test_master_resolves_and_is_reached(expect, facts, verdict, words):
    expect("rendezvous.master", facts, verdict, words)


@pytest.mark.parametrize(
    ("files", "env", "verdict", "words"),
    [
        (RANGE, {}, "ok", "32768 to 60999"),
        (RANGE, MASTER, "ok", "not 29500"),
        (RANGE, {**MASTER, "MASTER_PORT": "40000"}, "note", "another connection may take it"),
        (
            RANGE | {"/proc/sys/net/ipv4/ip_local_reserved_ports": "40000"},
            {**MASTER, "MASTER_PORT": "40000"},
            "ok",
            "handed out",
        ),
        ({next(iter(RANGE)): "60000 60999"}, {}, "warning", "many ranks need more"),
        ({}, {}, None, ""),
    ],
)
def test_port_is_not_one_that_is_handed_out(expect, files, env, verdict, words):
    expect("rendezvous.port_range", {"files": files, "env": env}, verdict, words)
