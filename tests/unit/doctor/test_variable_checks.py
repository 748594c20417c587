import pytest

from deepseek.doctor.variable_checks import INTERFACE_VARIABLES, VARIABLES

NET = "/sys/class/net"
FACTS = {
    f"{NET}/eth0/flags": "0x1003",
    f"{NET}/eth0/operstate": "up",
    f"{NET}/eth1/flags": "0x1002",
    f"{NET}/docker0/flags": "0x1003",
    f"{NET}/lo/flags": "0x9",
}
PORT = "/sys/class/infiniband/mlx5_0/ports/1"
IB = {f"{PORT}/state": "4: ACTIVE", f"{PORT}/rate": "400 Gb/sec (4X NDR)"}
HOSTS = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("variables", "verdict", "words"),
    [
        ({}, "ok", "no variable"),
        ({"NCCL_P2P_DISABLE": "1"}, "warning", "several times slower"),
        ({"NCCL_P2P_DISABLE": "0"}, "note", "forbids that GPUs access each other (default 0)"),
        ({"NCCL_DEBUG": "TRACE"}, "warning", "NCCL_DEBUG=WARN for daily use"),
        ({"NCCL_DEBUG": "INFO"}, "note", "how much NCCL tells"),
        ({"NCCL_DEBUG": "debug"}, "warning", "not a level"),
        ({"NCCL_ALGO": "Ring"}, "warning", "unset NCCL_ALGO"),
        ({"NCCL_IB_TIMEOUT": "14"}, "warning", "gives up"),
        ({"NCCL_IB_TIMEOUT": "22"}, "note", "default 20"),
        ({"NCCL_BLOCKING_WAIT": "1"}, "warning", "set TORCH_NCCL_BLOCKING_WAIT in place"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, "problem", "hang for ever"),
        ({"TORCH_NCCL_BLOCKING_WAIT": "1"}, "warning", "for debugging only"),
        ({"TORCH_FR_BUFFER_SIZE": "0"}, "warning", "flight recorder is off"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "warning", "several times slower"),
        ({"FI_PROVIDER": "tcp"}, "warning", "TCP in place of RDMA"),
        ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "warning", "many times slower"),
        ({"NCCL_IB_DISABLE": "1"}, "note", "turns InfiniBand and RoCE off"),
        ({"NCCL_IB_HCA": "mlx5_9"}, "problem", "fits no device here: none"),
    ],
)
def test_variable_that_is_set_is_explained_and_judged(expect, variables, verdict, words):
    expect("variables.set", {"env": variables}, verdict, words)


def test_infiniband_that_is_there_must_not_be_turned_off(expect):
    facts = {"env": {"NCCL_IB_DISABLE": "1"}, "files": IB}
    expect("variables.set", facts, "warning", "1 RDMA port(s) are up and not used")


@pytest.mark.parametrize(
    ("value", "verdict"), [("mlx5", "note"), ("=mlx5_0:1", "note"), ("^mlx5_1", "note")]
)
def test_devices_named_as_nccl_does_are_found(expect, value, verdict):
    expect("variables.set", {"env": {"NCCL_IB_HCA": value}, "files": IB}, verdict)


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("NCCL_SOCKET_IFNMAE", "problem", "did you mean NCCL_SOCKET_IFNAME?"),
        ("NCCL_P2P_DISABEL", "problem", "did you mean NCCL_P2P_DISABLE?"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLNG", "problem", "TORCH_NCCL_ASYNC_ERROR_HANDLING?"),
        ("NCCL_IB_RESILIENCY_PORT_FAILOVER", "note", "not in our table"),
        ("NCCL_FASTER_PLEASE", "warning", "probably has no effect"),
    ],
)
def test_variable_that_nothing_reads_is_told(expect, name, verdict, words):
    expect("variables.unknown", {"env": {name: "1"}}, verdict, words)


def test_known_and_foreign_variables_are_not_called_misspelt(expect):
    variables = {"NCCL_DEBUG": "WARN", "UCX_RNDV_THRESH": "8k", "PATH": "/bin"}
    expect("variables.unknown", {"env": variables}, None)


def test_what_images_say_about_themselves_is_no_setting(expect):
    expect("variables.unknown", {"env": {"NCCL_VERSION": "2.27.3-1"}}, None)
    expect("variables.set", {"env": {"NCCL_VERSION": "2.27.3-1"}}, "ok", "no variable")


@pytest.mark.parametrize(
    ("variables", "verdict", "words"),
    [
        ({"NCCL_SOCKET_IFNAME": "eth0"}, "ok", "eth0"),
        ({"NCCL_SOCKET_IFNAME": "^docker,lo"}, "ok", "eth0"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "problem", "fits no interface"),
        ({"NCCL_SOCKET_IFNAME": "enp3s0"}, "problem", "docker0, eth0, eth1, lo"),
        ({"NCCL_SOCKET_IFNAME": "eth1"}, "problem", "eth1 is down"),
        ({"NCCL_SOCKET_IFNAME": "lo"}, "warning", "other machines do not reach lo"),
        ({"NCCL_SOCKET_IFNAME": "docker0", **HOSTS}, "problem", "do not reach docker0"),
        ({"GLOO_SOCKET_IFNAME": "eth"}, "problem", "GLOO_SOCKET_IFNAME=eth fits no interface"),
        ({}, None, ""),
    ],
)
def test_interface_that_is_named_must_be_there_up_and_reached(expect, variables, verdict, words):
    expect("variables.interface", {"env": variables, "files": FACTS}, verdict, words)


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [({"nccl": "2.30.7"}, "ok", "NCCL 2.30.7"), ({"nccl": None}, "warning", "without NCCL")],
)
def test_nccl_belongs_to_a_torch_for_cuda(expect, facts, verdict, words):
    expect("nccl.version", {"torch": facts}, verdict, words)


def test_table_has_many_variables_each_once_in_one_line():
    assert len(VARIABLES) >= 120
    assert sum(name.startswith("NCCL_") for name in VARIABLES) >= 70
    for entry in VARIABLES.values():
        assert entry.what, entry.name
        assert len(entry.what) < 100, entry.name
        assert entry.default, entry.name
    assert set(INTERFACE_VARIABLES) <= set(VARIABLES)
