"""Published measurements as rows that `deepseek.planner` can be held against.

Each row has a published number, a function that computes the planner's, and whether the constants
were fitted on it. What a table does not say is assumed here, in one place for each table.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deepseek.planner import Cluster, ParallelPlan, TransformerShape, find_gpu, find_shape, predict
from deepseek.planner.constants import Calibration
from deepseek.planner.flops import model_flops_per_token
from deepseek.planner.footprint import count_block_bytes

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One published number."""

    table: str
    name: str
    published: float
    compute: Callable[[Calibration], float]
    """The planner's number under given constants."""
    is_fitted: bool = False
    is_timing: bool = True
    group: str = ""
    """Rows of one group are compared with each other, too: which of them is faster."""
    fits: Callable[[], bool] = lambda: True
    """Whether the planner says that the plan, which did run, fits its GPUs."""


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """All rows of the tables in `folder`, and the names of files that are not there."""
    rows: list[Row] = []
    absent: list[str] = []
    for name, make_rows in TABLES.items():
        path = folder / name
        if not path.is_file():
            absent.append(name)
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows += make_rows(list(csv.DictReader(file)))
    return rows, absent


def _step_s(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan
) -> Callable[[Calibration], float]:
    return lambda cal: predict(model, cluster, plan, cal).step_s


def _gpt(row: dict[str, str], length: int, dropout: bool = True) -> TransformerShape:
    """A Megatron GPT: GELU, biases, learned positions, 51,200 rows of vocabulary."""
    return TransformerShape(
        row.get("model") or row.get("case") or "gpt",
        int(row["layers"]),
        int(row["hidden"]),
        int(row["heads"]),
        51200,
        length,
        has_biases=True,
        has_positions=True,
        dropout=dropout,
    )


MEGATRON = ParallelPlan(
    recompute="full",
    sequence_parallel=False,
    attention="plain",
    stops_early=False,
    is_loss_fused=True,
    adds_in_product=False,
    precision="fp16",
    gradient_bytes=2.0,
)
"""What the tables of Megatron-LM of 2020 and 2021 have in common."""


# Korthikanti et al. 2022: no data parallelism, fused kernels, scores written to memory.


def _korthikanti_plan(row: dict[str, str]) -> ParallelPlan:
    chunks = int(row["interleave"])
    micro_batch = int(row["micro_batch"])
    return ParallelPlan(
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        schedule="interleaved_1f1b" if chunks > 1 else "1f1b",
        virtual_stages=chunks,
        micro_batch_size=micro_batch,
        num_micro_batches=int(row["global_batch"]) // micro_batch,
        attention="plain",
        stops_early=False,
        is_loss_fused=True,
    )


def _table_5(lines: list[dict[str, str]]) -> Iterator[Row]:
    for line in lines:
        model = _gpt(line, int(line["seq_len"]))
        cluster = Cluster(find_gpu("a100-80"), int(line["gpus"]))
        plan = _korthikanti_plan(line)
        full = replace(plan, recompute="full", sequence_parallel=False)
        selective = replace(plan, recompute="selective", sequence_parallel=True)
        for mode, key, chosen in (
            ("full", "iter_s_full_recompute", full),
            ("selective", "iter_s_seqpar_selective", selective),
        ):
            name = f"{line['model']} {mode}"
            yield Row(
                "Korthikanti table 5, step s",
                name,
                float(line[key]),
                _step_s(model, cluster, chosen),
                name in FITTED_KORTHIKANTI,
            )


def _figures_1_and_7(lines: list[dict[str, str]]) -> Iterator[Row]:
    for line in lines:
        model = _gpt(line, 2048)
        cluster = Cluster(find_gpu("a100-80"), int(line["gpus"]))
        yield from _figure_1(line, model, cluster)
        yield from _figure_7(line, model)


def _figure_1(line: dict[str, str], model: TransformerShape, cluster: Cluster) -> Iterator[Row]:
    """Bytes of a rank without embedding, and activations of the first rank, in GiB."""
    plan = _korthikanti_plan(line)
    table = "Korthikanti figure 1, GiB"

    def stored(cal: Calibration) -> float:
        # The figure's bars leave out the embedding: the rank in the middle has none.
        memory = predict(model, cluster, plan, cal).memory
        rank = memory[len(memory) // 2]
        return (rank["weights"] + rank["gradients"] + rank["optimizer"]) / GIB

    def kept(chosen: ParallelPlan) -> Callable[[Calibration], float]:
        return lambda cal: predict(model, cluster, chosen, cal).memory[0]["activations"] / GIB

    baseline = replace(plan, sequence_parallel=False)
    selective = replace(plan, recompute="selective")
    for name, key, compute in (
        ("weights and optimizer", "gib_params_opt_grads", stored),
        ("activations", "gib_act_tp_baseline_no_recompute", kept(baseline)),
        ("activations selective", "gib_act_seqpar_selective", kept(selective)),
    ):
        yield Row(table, f"{line['model']} {name}", float(line[key]), compute, is_timing=False)


def _figure_7(line: dict[str, str], model: TransformerShape) -> Iterator[Row]:
    """Activations a block keeps, per cent of those without any saving."""
    plan = replace(_korthikanti_plan(line), sequence_parallel=False)
    whole = count_block_bytes(model, plan).kept

    def share(chosen: ParallelPlan) -> Callable[[Calibration], float]:
        return lambda cal: 100 * count_block_bytes(model, chosen).kept / whole

    for name, key, chosen in (
        ("sequence parallel", "pct_act_seqpar", replace(plan, sequence_parallel=True)),
        ("selective", "pct_act_selective", replace(plan, recompute="selective")),
        (
            "both",
            "pct_act_seqpar_selective",
            replace(plan, recompute="selective", sequence_parallel=True),
        ),
        ("full", "pct_act_full_recompute", replace(plan, recompute="full")),
    ):
        yield Row(
            "Korthikanti figure 7, %",
            f"{line['model']} {name}",
            float(line[key]),
            share(chosen),
            is_timing=False,
        )


def _table_4(lines: list[dict[str, str]]) -> Iterator[Row]:
    """Milliseconds of one block: the difference between two depths of the same model."""
    modes = {
        "Baseline no recompute": {"sequence_parallel": False},
        "Sequence Parallelism": {},
        "Baseline with recompute (full)": {"sequence_parallel": False, "recompute": "full"},
        "Selective Recompute": {"sequence_parallel": False, "recompute": "selective"},
        "Selective + Sequence": {"recompute": "selective"},
    }
    for line in lines:
        plan = ParallelPlan(
            tp=8,
            micro_batch_size=4,
            attention="plain",
            stops_early=False,
            is_loss_fused=True,
            **modes[line["experiment"]],
        )
        model = find_shape("megatron-22b")
        yield Row(
            "Korthikanti table 4, ms of a block (recalled figures)",
            line["experiment"],
            float(line["combined_ms"]),
            _block_ms(model, Cluster(find_gpu("a100-80"), 8), plan),
        )


def _block_ms(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan
) -> Callable[[Calibration], float]:
    def compute(cal: Calibration) -> float:
        seconds = []
        for num_layers in (2, 1):
            times = predict(replace(model, num_layers=num_layers), cluster, plan, cal).time_s
            seconds.append(times["compute"] + times["recompute"] + times["tp"])
        return 1000 * (seconds[0] - seconds[1])

    return compute


# Narayanan et al. 2021 (SC'21). The micro-batch, the chunks of a pipeline rank and the kind of data
# parallelism of each row of table 1 are those of Megatron-LM, `examples/sc21/run_table_1.sh`; its
# `torch` reduces gradients beside backward, its `local` after it.
SC21_RUNS = {
    "1.7B": (16, 1, True),
    "3.6B": (16, 1, True),
    "7.5B": (16, 1, True),
    "18B": (8, 1, True),
    "39B": (4, 1, False),
    "76B": (2, 3, False),
    "145B": (2, 2, False),
    "310B": (1, 2, False),
    "530B": (1, 3, False),
    "1T": (1, 1, False),
}


def _sc21_table_1(lines: list[dict[str, str]]) -> Iterator[Row]:
    for line in lines:
        model = _gpt(line, int(line["seq_len"]))
        micro_batch, chunks, overlaps = SC21_RUNS[line["model"]]
        gpus, batch = int(line["gpus"]), int(line["global_batch_seqs"])
        tp, pp = int(line["tp"]), int(line["pp"])
        copies = gpus // (tp * pp)
        plan = replace(
            MEGATRON,
            dp_replicate=copies,
            tp=tp,
            pp=pp,
            schedule="interleaved_1f1b" if chunks > 1 else "1f1b",
            virtual_stages=chunks,
            micro_batch_size=micro_batch,
            num_micro_batches=batch // (copies * micro_batch),
            overlaps_dp=overlaps,
        )
        yield Row(
            "SC'21 table 1, TFLOP/s",
            line["model"],
            float(line["achieved_tflops_per_gpu"]),
            _tflops(model, Cluster(find_gpu("a100-80"), gpus), plan, batch),
            line["model"] in FITTED_SC21,
        )


def _sc21_flops(model: TransformerShape) -> float:
    """Of a sample with full recomputation: equation 3 of the paper."""
    s, h, layers, vocab = model.context_length, model.dim, model.num_layers, model.vocab_size
    return 96.0 * s * layers * h * h * (1 + s / (6 * h) + vocab / (16 * layers * h))


def _sc21_table_2(lines: list[dict[str, str]]) -> Iterator[Row]:
    """The pipelined rows are taken to have one chunk on each rank.

    ZeRO-3 of 2021 sends through one card of each node: 384, 768 and 1,536 GPUs need the same
    seconds for 4, 2 and 1 sequences each. What 384 GPUs need beyond their arithmetic says that
    gradients were not reduced beside it.
    """
    for line in lines:
        model = find_shape("megatron-175b" if line["params_b"] == "174.6" else "megatron-530b")
        gpus, batch = int(line["gpus"]), int(line["global_batch"])
        micro_batch, parallel = int(line["micro_batch"]), int(line["model_parallel"])
        is_sharded = line["scheme"] == "ZeRO-3"
        cluster = Cluster(find_gpu("a100-80"), gpus, cards_per_ring=1 if is_sharded else 0)
        plan = replace(
            MEGATRON,
            micro_batch_size=micro_batch,
        )
        copies = gpus if is_sharded else gpus // parallel
        if is_sharded:
            plan = replace(plan, dp_shard=gpus, overlaps_dp=False)
        else:
            plan = replace(plan, dp_replicate=copies, tp=8, pp=parallel // 8, overlaps_dp=False)
        count = batch // copies // micro_batch
        plan = replace(plan, num_micro_batches=max(1, count))
        name = f"{line['scheme']} {line['params_b']}B {gpus} GPUs"
        yield Row(
            "SC'21 table 2, TFLOP/s",
            name,
            float(line["achieved_tflops_per_gpu"]),
            _tflops(model, cluster, plan, plan.batch_size),
            name in FITTED_SC21,
            group=f"{line['params_b']}B {560 if gpus == 640 else gpus} GPUs",
        )


def _tflops(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan, batch: int
) -> Callable[[Calibration], float]:
    """TFLOP/s of one GPU, in the convention of the paper."""
    flops = _sc21_flops(model) * batch / cluster.num_gpus / 1e12
    return lambda cal: flops / predict(model, cluster, plan, cal).step_s


def _megatron_2020(lines: list[dict[str, str]]) -> Iterator[Row]:
    """Sequences of 1,024, one micro-batch, full recomputation (the FLOPs given count it).

    Gradients are fp16 and reduced beside backward, as torch's wrapper did it then.
    """
    for line in lines:
        is_v100 = line["gpu"].startswith("V100")
        model = _gpt(line, 1024)
        gpus, tp = int(line["gpus"]), int(line["model_parallel"])
        cluster = Cluster(
            find_gpu("v100" if is_v100 else "a100-40"), gpus, gpus_per_node=16 if is_v100 else 8
        )
        copies = gpus // tp
        plan = replace(
            MEGATRON,
            dp_replicate=copies,
            tp=tp,
            micro_batch_size=int(line["global_batch"]) // copies,
        )
        name = f"{line['case']} {line['gpu']} {gpus} GPUs"
        yield Row(
            "Megatron 2020, step s",
            name,
            float(line["iter_ms"]) / 1000,
            _step_s(model, cluster, plan),
            name in FITTED_MEGATRON_2020,
        )


def _mpt(lines: list[dict[str, str]]) -> Iterator[Row]:
    """FSDP of all ranks, no dropout, PyTorch's own kernels but for attention and loss.

    Rows of mode PURE (16-bit weights and gradients on the wire) are taken to be of an older
    PyTorch, which recomputed all of a block: at equal shape they are 8 % slower with recomputation
    and not without.
    """
    for line in lines:
        length, gpus = int(line["seq_len"]), int(line["gpus"])
        model = find_shape(f"mpt-{line['model']}", length)
        gpu = find_gpu("a100-40" if "40gb" in line["gpu"] else "a100-80")
        per_token = model_flops_per_token(model)
        name = f"{line['model']} {length} {gpus} x {gpu.name} mb {line['micro_batch']}"
        rate = float(line["tok_per_s_per_gpu"])
        yield Row(
            "MPT, FLOP accounting, MFU %",
            name,
            float(line["mfu_pct"]),
            lambda cal, rate=rate, flops=per_token, peak=gpu.peak_flops["bf16"]: (
                100 * rate * flops / peak
            ),
            is_timing=False,
        )
        if not line["precision"].endswith("bf16"):
            continue
        is_pure = line["mp_mode"] == "PURE"
        plan = ParallelPlan(
            dp_shard=gpus,
            micro_batch_size=int(line["micro_batch"]),
            num_micro_batches=int(line["grad_accum"]),
            recompute="full" if line["act_ckpt"] == "True" else "none",
            is_fused=False,
            attention="flash1",
            stops_early=not is_pure,
            is_loss_fused=True,
            gradient_bytes=2.0 if is_pure else 4.0,
        )
        is_fitted = name in FITTED_MPT
        cluster = Cluster(gpu, gpus)
        yield Row(
            f"MPT, step s, {'fitted' if is_fitted else 'held out'}",
            name,
            plan.batch_size * length / rate / gpus,
            _step_s(model, cluster, plan),
            is_fitted,
            fits=lambda model=model, cluster=cluster, plan=plan: predict(model, cluster, plan).fits,
        )


def _fms(lines: list[dict[str, str]]) -> Iterator[Row]:
    """Compiled; one block in so many is recomputed whole, which the published HFU tells."""
    for line in lines:
        model = find_shape(f"llama2-{line['model']}", int(line["seq_len"]))
        gpus = int(line["gpus"])
        again = 3 * (float(line["hfu_pct"]) / float(line["mfu_pct"]) - 1)
        is_hybrid = line["sharding"] == "HSDP"
        gpu = find_gpu("h100" if line["gpu"] == "H100" else "a100-80")
        plan = ParallelPlan(
            dp_replicate=gpus // 8 if is_hybrid else 1,
            dp_shard=8 if is_hybrid else gpus,
            micro_batch_size=int(line["micro_batch"]),
            recompute="full" if again > 0 else "none",
            recompute_share=min(1.0, again),
            gradient_bytes=2.0,
        )
        name = f"{line['model']} {line['gpu']}"
        yield Row(
            "fms-fsdp, step s",
            name,
            plan.batch_size * model.context_length / gpus / float(line["tok_per_s_per_gpu"]),
            _step_s(
                model,
                Cluster(gpu, gpus, node_bandwidth=float(line["interconnect_gbps"]) / 8 * 1e9),
                plan,
            ),
            name in FITTED_FMS,
        )


def _mamf(lines: list[dict[str, str]]) -> Iterator[Row]:
    """The planner's ceilings are these figures, where its table has the GPU: those are "fitted".

    A GH200 is costed as an H100, whose chip it has. AMD's are not in the planner's table.
    """
    for line in lines:
        name = line["accelerator"]
        if name not in MAMF_GPUS:
            continue
        gpu, kind = find_gpu(MAMF_GPUS[name]), "fp8" if line["dtype"].startswith("fp8") else "bf16"
        yield Row(
            "MAMF, TFLOP/s of the best product",
            f"{name} {kind}",
            float(line["mamf_tflops"]),
            lambda cal, flops=gpu.matmul_flops[kind]: flops / 1e12,
            is_fitted=name != "GH200 SXM",
            is_timing=False,
        )


MAMF_GPUS = {
    "A100 SXM": "a100-80", "A100 PCIe": "a100-pcie", "GH200 SXM": "h100", "H100 SXM": "h100",
    "H100 SXM (=H200)": "h100", "H200 SXM": "h200", "B200 SXM": "b200", "B300 SXM": "b300",
    "GB200 SXM": "gb200",
}  # fmt: skip

FITTED_KORTHIKANTI = ("22B selective", "175B full", "1T selective")
FITTED_SC21 = ("7.5B", "145B", "ZeRO-3 174.6B 384 GPUs")
FITTED_MEGATRON_2020 = ("1B V100 DGX-2 1 GPUs",)
FITTED_FMS = ("7b H100", "70b H100", "70b A100-80GB")
FITTED_MPT = (
    "70b 2048 64 x a100-80 mb 8",
    "30b 2048 8 x a100-80 mb 3",
    "13b 16384 8 x a100-80 mb 3",
    "7b 2048 8 x a100-80 mb 6",
    "7b 65536 8 x a100-80 mb 1",
    "3b 4096 8 x a100-80 mb 5",
    "1b 512 8 x a100-80 mb 56",
    "125m 2048 8 x a100-80 mb 32",
    "30b 2048 128 x a100-40 mb 6",
    "7b 2048 32 x a100-40 mb 18",
    "350m 2048 128 x a100-40 mb 18",
)

TABLES: dict[str, Callable[[list[dict[str, str]]], Iterator[Row]]] = {
    "korthikanti_table5_iter_time.csv": _table_5,
    "korthikanti_fig1_fig7_memory.csv": _figures_1_and_7,
    "korthikanti_table4_layer_ms_22B.csv": _table_4,
    "megatron_sc21_table1.csv": _sc21_table_1,
    "megatron_sc21_table2_zero3_vs_ptdp.csv": _sc21_table_2,
    "megatron_2020_dgx_a100.csv": _megatron_2020,
    "mosaicml_mpt_a100.csv": _mpt,
    "fms_fsdp_llama2.csv": _fms,
    "mamf_matmul_ceiling.csv": _mamf,
}
