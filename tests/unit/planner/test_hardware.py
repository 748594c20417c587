import pytest

from deepseek.errors import ConfigError
from deepseek.planner import GPUS, Cluster, find_gpu
from deepseek.planner.hardware import GIB, match_gpu


@pytest.mark.parametrize("name", ["H100", "a100_80gb", "A100 80GB", "nvidia-b200", "h100-sxm"])
def test_names_are_read_as_people_write_them(name):
    assert find_gpu(name).name in GPUS


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ConfigError, match="gpu='tpu' is not in the table") as error:
        find_gpu("tpu")
    assert "h100" in (error.value.fix or "")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_reached_rates_are_below_the_datasheet(gpu):
    assert gpu.matmul_flops.keys() == gpu.peak_flops.keys()
    assert all(0.5 < gpu.matmul_flops[p] / gpu.peak_flops[p] < 1 for p in gpu.peak_flops)


def test_node_bandwidth_is_the_usual_one_unless_given():
    assert Cluster(find_gpu("h100"), 16).node_bandwidth == 400e9
    assert Cluster(find_gpu("h100"), 16, gpus_per_node=4).node_bandwidth == 200e9
    assert Cluster(find_gpu("h100"), 16, node_bandwidth=50e9).node_bandwidth == 50e9


@pytest.mark.parametrize(
    ("sizes", "words"), [({"num_gpus": 0}, "num_gpus=0"), ({"node_bandwidth": -1.0}, "-1.0")]
)
def test_an_impossible_cluster_is_refused(sizes, words):
    with pytest.raises(ConfigError, match=words):
        Cluster(**{"gpu": find_gpu("h100"), "num_gpus": 8} | sizes)


@pytest.mark.parametrize(
    ("device_name", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA H100 NVL", 93.1, "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"),
        ("NVIDIA H200", 139.8, "h200"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None),
        ("NVIDIA GeForce RTX 4090", 23.6, None),
        ("", 16, None),
    ],
)
def test_the_name_a_driver_gives_leads_to_the_table(device_name, gib, expected):
    found = match_gpu(device_name, int(gib * GIB))
    assert (found and found.name) == expected
