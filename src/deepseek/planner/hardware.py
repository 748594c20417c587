"""A table of GPUs: datasheet figures, and the rate that a matrix product really reaches.

Datasheets: NVIDIA V100, A100, H100, H200, B200 (dense rates, without sparsity; bandwidths of one
direction). Hosts: NVIDIA's user guides of DGX-1, DGX A100, DGX H100, DGX B200 and DGX B300, and the
datasheet of GB200 NVL72, per GPU: two GPUs share a PCIe switch, and with it 16 lanes to the host,
so that half of them is each one's while both copy; memory is the channels of both processors times
their rate. Reached rates: the "maximum achievable matmul FLOPS" of Stas Bekman's Machine Learning
Engineering, `compute/accelerator` (best of many shapes, random data). Where that table has no
figure, the share that a sibling reaches is taken, and the line says so.
"""

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Gpu, Host

GB = 10**9
GIB = 2**30

_LANES_16 = {3: 15.75, 4: 31.5, 5: 63.0}
"""GB/s and direction of 16 lanes of PCIe, by generation."""


def _host(pcie: int, memory_gb_s: float, memory_gib: float) -> Host:
    """A GPU's share of a host of 8 that has so much memory and bandwidth of it in all."""
    return Host(_LANES_16[pcie] * GB / 2, memory_gb_s * GB / 8, memory_gib * GIB / 8)


_DGX_1 = _host(3, 8 * 17.07, 512)
_DGX_A100 = _host(4, 16 * 25.6, 1024)
_DGX_A100_80 = _host(4, 16 * 25.6, 2048)
_DGX_H100 = _host(5, 16 * 38.4, 2048)
_DGX_B200 = _host(5, 16 * 44.8, 2048)
_DGX_B300 = _host(5, 16 * 51.2, 2048)
# Two GPUs share a Grace: NVLink-C2C of 450 GB/s and direction, 480 GB of LPDDR5X at 512 GB/s.
_GRACE = Host(225 * GB, 256 * GB, 240 * GB)


def _gpu(
    name: str,
    memory_gib: float,
    peaks: tuple[float, float, float],
    reached: tuple[float, float],
    memory_bandwidth: float,
    link_bandwidth: float,
    node_bandwidth: float,
    num_sms: int,
    host: Host,
) -> Gpu:
    """A `Gpu` from (half, fp8, fp32) peaks and (half, fp8) reached rates in TFLOP/s, and GB/s."""
    half, fp8, single = (peak * 1e12 for peak in peaks)
    peak_flops = {"fp16": half, "bf16": half, "fp8": fp8, "fp32": single}
    matmul_flops = {
        "fp16": reached[0] * 1e12,
        "bf16": reached[0] * 1e12,
        "fp8": reached[1] * 1e12,
        "fp32": 0.9 * single,
    }
    if name == "v100":
        del peak_flops["bf16"], matmul_flops["bf16"]
    if not fp8:
        del peak_flops["fp8"], matmul_flops["fp8"]
    return Gpu(
        name,
        int(memory_gib * GIB),
        peak_flops,
        matmul_flops,
        memory_bandwidth * GB,
        link_bandwidth * GB,
        num_sms,
        node_bandwidth * GB,
        is_power_limited=bool(fp8),
        host=host,
    )


_TABLE = (
    # V100: not in the table of reached rates; 0.85 of the peak, between A100's two forms.
    _gpu("v100", 32, (125, 0, 15.7), (106, 0), 900, 150, 50, 80, _DGX_1),
    _gpu("a100-40", 40, (312, 0, 19.5), (271.2, 0), 1555, 300, 200, 108, _DGX_A100),
    _gpu("a100-80", 80, (312, 0, 19.5), (271.2, 0), 2039, 300, 200, 108, _DGX_A100_80),
    _gpu("a100-pcie", 80, (312, 0, 19.5), (252.9, 0), 1935, 32, 100, 108, _DGX_A100),
    _gpu("h100", 80, (989.4, 1978.9, 66.9), (794.5, 1402.6), 3350, 450, 400, 132, _DGX_H100),
    # H100 of Grand Teton servers (96 GB of HBM2e at 2.4 TB/s, 500 W), which torchtitan's figures
    # are of: not in the table of reached rates; between SXM and NVL.
    _gpu("h100-96", 96, (989.4, 1978.9, 66.9), (700, 1250), 2400, 450, 400, 132, _DGX_H100),
    # PCIe and NVL: not in the table of reached rates; A100 PCIe's share of the peak, less power.
    _gpu("h100-pcie", 80, (756, 1513, 51.2), (530, 940), 2000, 64, 200, 114, _DGX_H100),
    _gpu("h100-nvl", 94, (835, 1671, 60), (620, 1090), 3900, 64, 200, 132, _DGX_H100),
    _gpu("h200", 141, (989.4, 1978.9, 66.9), (794.5, 1453.4), 4800, 450, 400, 132, _DGX_H100),
    _gpu("b200", 180, (2250, 4500, 75), (1745, 3432.5), 8000, 900, 400, 148, _DGX_B200),
    _gpu("b300", 270, (2250, 4500, 75), (1769, 3432.5), 8000, 900, 800, 148, _DGX_B300),
    _gpu("gb200", 186, (2500, 5000, 80), (1822, 3570), 8000, 900, 400, 148, _GRACE),
)

GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _TABLE}

_MODELS = {gpu.name.split("-")[0] for gpu in _TABLE}
MEMORY_TOLERANCE = 0.15
"""Share by which the memory of a GPU may differ from its entry: a part of one (MIG) is another."""
_ALIASES = {"a100": "a100-80", "h100-sxm": "h100", "h100-80": "h100", "h100-sxm5": "h100"}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name` in the table; case, `_` and a trailing `gb` do not matter.

    Raises:
        ConfigError: there is no such name.
    """
    key = name.lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    key = key.removesuffix("gb")
    gpu = GPUS.get(_ALIASES.get(key, key))
    if gpu is None:
        raise ConfigError(
            f"gpu={name!r} is not in the table of GPUs.",
            fix=f"use one of {', '.join(GPUS)}, or build a deepseek.planner.Gpu from its datasheet",
        )
    return gpu


def match_gpu(device_name: str, memory_bytes: int) -> Gpu | None:
    """Return the GPU of the table that a driver means, or `None` where there is none.

    Args:
        device_name: as the driver has it, `NVIDIA A100-SXM4-80GB`.
        memory_bytes: of the device; tells forms of one name apart.
    """
    words = device_name.lower().replace("-", " ").split()
    model = next((word for word in words if word in _MODELS), None)
    if model is None:
        return None
    form = next((form for form in ("pcie", "nvl") if form in words), None)
    found = [gpu for gpu in _TABLE if gpu.name.split("-")[0] == model]
    if form is not None:
        found = [gpu for gpu in found if gpu.name.endswith(form)] or found
    else:
        found = [gpu for gpu in found if not gpu.name.endswith(("pcie", "nvl"))]
    nearest = min(found, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes))
    # what is left of the memory is what a plan may fill: the table has the datasheet's
    return nearest if abs(nearest.memory_bytes / memory_bytes - 1) < MEMORY_TOLERANCE else None
