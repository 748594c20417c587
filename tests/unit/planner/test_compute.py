from itertools import pairwise

from deepseek.planner import find_gpu, find_shape
from deepseek.planner.compute import get_chip, matmul_s, time_block
from deepseek.planner.constants import CALIBRATION


def test_large_products_come_near_the_reached_rate_and_never_above():
    gpu = find_gpu("a100-80")
    chip = get_chip(gpu, "bf16", CALIBRATION)
    for size in (1024, 4096, 16384):
        rate = 2 * size**3 / matmul_s(chip, size, size, size)
        assert rate < gpu.matmul_flops["bf16"]
    assert rate > 0.9 * CALIBRATION.matmul_share * gpu.matmul_flops["bf16"]


def test_thin_products_are_bound_by_memory():
    chip = get_chip(find_gpu("h100"), "bf16", CALIBRATION)
    moved_s = 2 * 16384 * 16384 / chip.bytes_per_s
    assert moved_s <= matmul_s(chip, 8, 16384, 16384) < 2.5 * moved_s


def test_more_rows_never_take_less():
    chip = get_chip(find_gpu("h100"), "bf16", CALIBRATION)
    seconds = [matmul_s(chip, rows, 4096, 4096) for rows in range(128, 8192, 128)]
    assert all(b >= a * (1 - 0.02) for a, b in pairwise(seconds))


def test_flash_attention_beats_scores_in_memory():
    shape, gpu = find_shape("gpt3-6.7b"), find_gpu("a100-80")
    plain, flash = (
        time_block(shape, gpu, 4, 1, 1, ("bf16", kind, True, True), CALIBRATION)
        for kind in ("plain", "flash")
    )
    assert flash.forward_s < plain.forward_s
    assert flash.core_s < plain.core_s / 2
