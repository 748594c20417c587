"""`deepseek plan`: what a training will need in memory and time, before renting a GPU."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from deepseek.planner.cluster import Cluster
    from deepseek.planner.model_source import ModelSource
    from deepseek.planner.search import Candidates
    from deepseek.planner.search_space import SearchSpace

CLUSTER, PLAN, OUTPUT = "Cluster", "Plan", "Output"
TOKENS_OF_A_STEP = 2**22
"""Where --batch is not given: sequences of about so many tokens."""
EXIT_NOTHING_FITS = 1


def plan(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name (llama3-8b), a config.json of Hugging Face or its folder, a"
            " model_config.yaml, or layers=48,dim=6144,heads=64,vocab=51200,seq=2048.",
        ),
    ],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs in all.", rich_help_panel=CLUSTER)
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="a100-80, h100, h200, b200, ...", rich_help_panel=CLUSTER)
    ] = "h100",
    gpus_per_node: Annotated[
        int, typer.Option(min=1, help="GPUs that share a node.", rich_help_panel=CLUSTER)
    ] = 8,
    node_bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Out of a node, one direction: 400GB/s, 3200Gbit/s; usual for the GPU by default.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    bandwidth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Links as measured by deepseek doctor --bandwidth --json.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of a node's host: 2TiB; usual for the GPU by default.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="USD for a GPU and hour.", rich_help_panel=CLUSTER),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences of a step; about 4M tokens by default."),
    ] = None,
    seq: Annotated[
        int, typer.Option(min=0, help="Tokens of a sequence; the model's by default.")
    ] = 0,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens to train on, for days and money: 300B.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp8 or fp32; bf16 by default, fp16 where the GPU has none."),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(min=0, help="Tokens of the vocabulary; the model's by default.")
    ] = 0,
    trainable: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Weights that are trained, 20M or a share, 0.01; all by default."
        ),
    ] = None,
    plan_text: Annotated[
        str | None,
        typer.Option("--plan", help="Cost this layout alone: dp8-tp8-pp4.", rich_help_panel=PLAN),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Pipeline schedule, or all of them.", rich_help_panel=PLAN),
    ] = None,
    stages_per_rank: Annotated[
        int, typer.Option(min=0, help="Pipeline stages of a rank.", rich_help_panel=PLAN)
    ] = 0,
    micro_batch: Annotated[
        int, typer.Option(min=0, help="Sequences of a micro-batch.", rich_help_panel=PLAN)
    ] = 0,
    recompute: Annotated[
        str | None,
        typer.Option(help="none, pointwise, selective or full.", rich_help_panel=PLAN),
    ] = None,
    offload: Annotated[
        str,
        typer.Option(
            help="What waits on the host: none, optimizer, parameters; auto: what must.",
            rich_help_panel=PLAN,
        ),
    ] = "auto",
    software: Annotated[
        str,
        typer.Option(help="What will run the plan: deepseek or megatron.", rich_help_panel=PLAN),
    ] = "deepseek",
    memory_share: Annotated[
        float,
        typer.Option(
            min=0.05, max=1, help="Of the device that a plan may take.", rich_help_panel=PLAN
        ),
    ] = 0.9,
    top: Annotated[int, typer.Option(min=1, help="Plans to show.", rich_help_panel=OUTPUT)] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why other plans lost.", rich_help_panel=OUTPUT)
    ] = False,
    as_yaml: Annotated[
        bool,
        typer.Option("--yaml", help="Print the settings of a run.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with pictures.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Find the fastest way to train a model on a cluster, in memory, time and money.

    Exits with 1 where nothing fits.
    """
    options = dict(context.params)
    source = _find_model(options)
    space, num_gpus = _make_space(options)
    cluster = _make_cluster(options, num_gpus)
    batch_size = batch or source.batch_size or _usual_batch(source, num_gpus)
    found = _search(source, cluster, batch_size, space)
    from deepseek.planner.plan_report import PlanReport

    report = PlanReport(source, cluster, batch_size, space, found, _count_tokens(tokens))
    if html is not None:
        from deepseek.planner.page import write_page

        write_page(report, html)
    _print(report, options)
    raise typer.Exit(0 if found.best else EXIT_NOTHING_FITS)


def _find_model(options: Mapping[str, Any]) -> "ModelSource":
    from dataclasses import replace

    from deepseek.planner.model_source import find_model
    from deepseek.planner.predict import train_some
    from deepseek.planner.quantity import parse_count

    source = find_model(options["model"], options["seq"], options["vocab_size"])
    if options["trainable"] is None:
        return source
    shape = train_some(source.shape, parse_count(options["trainable"], "--trainable"))
    return replace(source, shape=shape)


def _make_space(options: Mapping[str, Any]) -> "tuple[SearchSpace, int]":
    """What is searched, and the number of GPUs."""
    from math import prod

    from deepseek.errors import ConfigError
    from deepseek.planner.plan_text import read_axes
    from deepseek.planner.search_space import (
        ALL_SCHEDULES,
        OFFLOADS,
        POLICIES,
        SCHEDULES,
        SearchSpace,
    )

    axes = read_axes(options["plan_text"], options["gpus"]) if options["plan_text"] else {}
    num_gpus = options["gpus"] or prod(axes.values())
    if options["gpus"] is None and not axes:
        raise ConfigError(
            "--gpus is not given: how many GPUs there are decides everything else.",
            fix="add --gpus 8 (and --gpu h100), or cost one plan by --plan dp8-tp8-pp4",
        )
    _choose("--recompute", options["recompute"], POLICIES)
    _choose("--precision", options["precision"], ("bf16", "fp16", "fp8", "fp32"))
    _choose("--software", options["software"], ("deepseek", "megatron"))
    _choose("--offload", options["offload"], ("auto", "none", *OFFLOADS))
    schedule = options["schedule"]
    _choose("--schedule", schedule, (*ALL_SCHEDULES, "all"))
    if options["bandwidth"] and options["node_bandwidth"]:
        raise ConfigError(
            "--bandwidth and --node-bandwidth both say how fast the links are.",
            fix="give one of them",
        )
    chosen = {"all": ALL_SCHEDULES, None: SCHEDULES}.get(schedule, (schedule,))
    space = SearchSpace(
        software=options["software"],
        precision=options["precision"] or _usual_precision(options["gpu"]),
        axes=axes,
        policies=(options["recompute"],) if options["recompute"] else POLICIES,
        schedules=chosen,
        virtual_stages=options["stages_per_rank"],
        micro_batch_size=options["micro_batch"],
        memory_share=options["memory_share"],
        offload=options["offload"],
    )
    return space, num_gpus


def _choose(option: str, value: str | None, known: tuple[str, ...]) -> None:
    from deepseek.errors import ConfigError
    from deepseek.registry import did_you_mean

    if value is not None and value not in known:
        raise ConfigError(f"{option} {value} is not known.", fix=did_you_mean(value, known))


def _make_cluster(options: Mapping[str, Any], num_gpus: int) -> "Cluster":
    from dataclasses import replace

    from deepseek.planner import Cluster, find_gpu
    from deepseek.planner.measured_links import apply_measurement
    from deepseek.planner.quantity import parse_rate, parse_size

    rate = options["node_bandwidth"]
    cluster = Cluster(
        find_gpu(options["gpu"]),
        num_gpus,
        options["gpus_per_node"],
        parse_rate(rate, "--node-bandwidth") if rate else 0.0,
        options["price"] or 0.0,
    )
    if options["bandwidth"] is not None:
        cluster = apply_measurement(cluster, options["bandwidth"])
    if options["host_memory"] is not None:
        size = parse_size(options["host_memory"], "--host-memory")
        cluster = replace(cluster, host_bytes=size)
    return cluster


def _usual_precision(gpu: str) -> Literal["bf16", "fp16"]:
    from deepseek.planner import find_gpu

    return "bf16" if "bf16" in find_gpu(gpu).matmul_flops else "fp16"


def _usual_batch(source: "ModelSource", num_gpus: int) -> int:
    """Sequences of at most the usual number of tokens: a power of two, times the GPUs' odd part.

    GPUs that are no power of two, such as 3,072, share no batch that is one.
    """
    sequences = max(1, TOKENS_OF_A_STEP // source.shape.context_length)
    odd = num_gpus // (num_gpus & -num_gpus)
    if odd > sequences:
        odd = 1
    return odd * 2 ** ((sequences // odd).bit_length() - 1)


def _count_tokens(text: str | None) -> float:
    from deepseek.planner.quantity import parse_count

    return parse_count(text, "--tokens") if text else 0.0


def _search(
    source: "ModelSource", cluster: "Cluster", batch_size: int, space: "SearchSpace"
) -> "Candidates":
    """Search, with a bar where somebody looks on."""
    from rich.console import Console
    from rich.progress import Progress

    from deepseek.planner.search import search

    console = Console(stderr=True)
    if not sys.stderr.isatty():
        return search(source.shape, cluster, batch_size, space)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("searching", total=None)
        return search(
            source.shape,
            cluster,
            batch_size,
            space,
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def _print(report: Any, options: Mapping[str, Any]) -> None:
    from deepseek.cli.plan_table import (
        print_explanation,
        print_explanation_as_comments,
        print_report,
    )

    if options["as_json"]:
        print(json.dumps(report.as_json(options["top"], options["explain"])))
    elif options["as_yaml"]:
        print(report.as_yaml(), end="")
        if options["explain"]:
            print_explanation_as_comments(report)
    else:
        print_report(report, options["top"])
        if options["explain"]:
            print_explanation(report)
        if options["html"] is not None:
            print(f"\n{options['html']}")
