"""What is chosen for a detector fits the memory, and what it is trained on."""

import numpy as np
import pytest

from deepseek.errors import ConfigError, DataError
from deepseek.medical import Means, make_phantom, write_phantom
from deepseek.medical.configuration import USABLE_SHARE
from deepseek.medical.detector_configuration import configure_detector

MIB = 2**20
H100 = Means("cuda", 80 * 1024 * MIB, None, has_bf16=True)
LAPTOP = Means("cpu", 16 * 1024 * MIB, 120e9, has_bf16=True)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """100 empty cubes of 51 voxels: of them only number and size are looked at."""
    path = tmp_path_factory.mktemp("cubes") / "cubes.npz"
    mask = np.zeros((100, 51, 51, 51), np.uint8)
    mask[:, 25, 25, 25] = 1
    np.savez_compressed(path, image=mask, mask=mask, name=[f"{n}_1" for n in range(100)])
    return path


@pytest.mark.parametrize("memory", [1100, 1300, 2000, 80 * 1024])
def test_what_is_chosen_fits_the_memory_of_a_gpu(cubes, memory):
    chosen = configure_detector(cubes, means=Means("cuda", memory * MIB * 5 // 4, None, True))
    assert chosen.memory_bytes <= memory * MIB * 5 / 4 * USABLE_SHARE
    assert 2 <= chosen.batch_size <= 5  # 5 % of 100


def test_more_memory_is_used(cubes):
    small = configure_detector(cubes, means=Means("cuda", 1400 * MIB, None, True))
    large = configure_detector(cubes, means=H100)
    assert (large.patch, large.batch_size, large.features) == (40, 5, (32, 64, 128, 256))
    assert small.memory_bytes < large.memory_bytes
    assert "of cubes of 51 voxels 80%" in large.describe()


def test_a_step_on_a_cpu_does_not_take_long(cubes):
    assert configure_detector(cubes, means=LAPTOP).step_flops <= 120e9


def test_scans_are_not_cut_for_it(tmp_path):
    for number in range(2):
        phantom = make_phantom((20, 32, 32), (15, 11, 11), num_nodules=2, seed=number)
        write_phantom(phantom, tmp_path / "scans", f"scan-{number}", "metaimage")
    chosen = configure_detector(tmp_path / "scans", means=H100)
    assert chosen.found.startswith(f"2 scans, {chosen.num_nodules} findings; cubes of 51 voxels")
    assert 2 <= chosen.num_nodules <= 4
    assert (chosen.patch, chosen.batch_size) == (40, 2)


def test_where_nothing_fits_or_nothing_is_known_it_is_said(cubes, tmp_path):
    with pytest.raises(ConfigError, match="not even a patch of 16 voxels fits"):
        configure_detector(cubes, means=Means("cuda", 1000 * MIB, None, True))
    np.save(tmp_path / "scan.npy", np.zeros((8, 8, 8), np.int16))
    with pytest.raises(DataError, match=r"neither annotations\.csv nor labels"):
        configure_detector(tmp_path, means=H100)
