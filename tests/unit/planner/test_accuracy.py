"""The planner against published measurements: the error bars that it is published with."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"

TARGETS = {
    # file: (first words of the table, mean, worst), in per cent
    "korthikanti_table5_iter_time.csv": [("Korthikanti table 5", 3, 8)],
    "korthikanti_fig1_fig7_memory.csv": [
        ("Korthikanti figure 1", 5, 10),
        ("Korthikanti figure 7", 5, 10),
    ],
    "korthikanti_table4_layer_ms_22B.csv": [("Korthikanti table 4", 10, 15)],
    "megatron_sc21_table1.csv": [("SC'21 table 1", 8, 15)],
    "megatron_sc21_table2_zero3_vs_ptdp.csv": [("SC'21 table 2", 10, 25)],
    "megatron_2020_dgx_a100.csv": [("Megatron 2020", 10, 20)],
    "mosaicml_mpt_a100.csv": [
        ("MPT, FLOP accounting", 0.5, 0.5),
        ("MPT, step s, fitted", 10, 15),
        ("MPT, step s, held out", 10, 35),
    ],
    "fms_fsdp_llama2.csv": [("fms-fsdp", 10, 15)],
    "mamf_matmul_ceiling.csv": [("MAMF", 1, 5)],
}


@pytest.fixture
def validation(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("planner_validation")


@pytest.fixture
def tables(validation):
    folder = validation.find_data(None)
    rows, absent = importlib.import_module("planner_rows").read_rows(folder)
    return validation.evaluate(rows), absent, folder


@pytest.mark.parametrize("file", TARGETS)
def test_errors_stay_within_the_published_bars(file, tables, validation):
    evaluated, absent, folder = tables
    if file in absent:
        pytest.skip(f"{folder / file} is not there (set DEEPSEEK_PUBLISHED)")
    for words, most_mean, most_worst in TARGETS[file]:
        (results,) = (r for name, r in evaluated.items() if name.startswith(words))
        mean, worst = validation.summarise(results)
        assert mean <= most_mean, f"{words}: mean {mean:.2f} %"
        assert worst <= most_worst, f"{words}: worst {worst:.2f} %"


def test_the_faster_of_two_published_plans_is_the_faster_predicted(tables, validation):
    evaluated, absent, folder = tables
    file = "megatron_sc21_table2_zero3_vs_ptdp.csv"
    if file in absent:
        pytest.skip(f"{folder / file} is not there (set DEEPSEEK_PUBLISHED)")
    (results,) = (r for name, r in evaluated.items() if name.startswith("SC'21 table 2"))
    right, groups = validation.count_winners(results)
    assert (right, groups) == (6, 6)


def test_published_runs_fit_the_gpus_they_ran_on(tables):
    evaluated, absent, folder = tables
    if "mosaicml_mpt_a100.csv" in absent:
        pytest.skip(f"{folder / 'mosaicml_mpt_a100.csv'} is not there (set DEEPSEEK_PUBLISHED)")
    timings = [r for name, rs in evaluated.items() if name.startswith("MPT, step") for r in rs]
    assert all(result.row.fits() for result in timings)


def test_most_rows_are_held_out(tables):
    evaluated, absent, folder = tables
    if absent:
        pytest.skip(f"{', '.join(absent)} not in {folder} (set DEEPSEEK_PUBLISHED)")
    timings = [r for rs in evaluated.values() for r in rs if r.row.is_timing]
    fitted = [r for r in timings if r.row.is_fitted]
    assert len(fitted) <= len(timings) / 8


def test_absent_tables_are_named(validation, tmp_path):
    rows, absent = importlib.import_module("planner_rows").read_rows(tmp_path)
    assert rows == []
    assert set(absent) == set(TARGETS)


def test_the_errors_that_the_command_prints_are_those_of_today(tables, validation):
    from deepseek.planner.accuracy import VALIDATION

    evaluated, absent, folder = tables
    if absent:
        pytest.skip(f"{', '.join(absent)} not in {folder} (set DEEPSEEK_PUBLISHED)")
    assert len(evaluated) == len(VALIDATION)
    for entry, (name, results) in zip(VALIDATION, evaluated.items(), strict=True):
        assert name.startswith(entry.table)
        mean, worst = validation.summarise(results)
        assert (entry.num_rows, entry.num_fitted) == (
            len(results),
            sum(result.row.is_fitted for result in results),
        )
        assert entry.mean == pytest.approx(mean, abs=0.006)
        assert entry.worst == pytest.approx(worst, abs=0.006)


def test_the_documentation_has_the_errors_that_the_command_prints():
    from deepseek.planner.accuracy import VALIDATION

    page = (BENCHMARKS.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    for entry in VALIDATION:
        row = f"| {entry.table} | {entry.num_rows} | {entry.num_fitted} |"
        assert f"{row} {entry.mean:.2f} | {entry.worst:.2f} |" in page
