"""`deepseek doctor`: what is wrong with this machine for training, and how fast its links are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.model_options import AsJson
from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.doctor.bandwidth import Bandwidth, Measurement

DEFAULT_SIZES = "1KiB:64MiB"


def doctor(
    bandwidth: Annotated[
        bool, typer.Option("--bandwidth", help="Measure how fast processes talk to each other.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes of --bandwidth: by default one per GPU, 2 without.", metavar="N"
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help=f"Message sizes of --bandwidth, by default {DEFAULT_SIZES}."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="SVG file to draw --bandwidth into.", metavar="FILE.svg"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this machine for training, and how to mend it.

    Exits with 1 where there is a problem.
    """
    if bandwidth:
        raise typer.Exit(_measure(nproc, sizes or DEFAULT_SIZES, plot, as_json))
    given = {"--nproc": nproc, "--sizes": sizes, "--plot": plot}
    ignored = [name for name, value in given.items() if value is not None]
    if ignored:
        raise ConfigError(
            f"{', '.join(ignored)} without --bandwidth: nothing would be measured",
            fix="add --bandwidth",
        )
    from deepseek.doctor import as_json as findings_as_json
    from deepseek.doctor import examine, exit_code, print_table

    findings = examine()
    if as_json:
        print(json.dumps(findings_as_json(findings)))
    else:
        print_table(findings)
    raise typer.Exit(exit_code(findings))


def _measure(nproc: int | None, sizes: str, plot: Path | None, as_json: bool) -> int:
    from deepseek.doctor.bandwidth import measure_bandwidth
    from deepseek.doctor.bandwidth_plot import draw_bandwidth
    from deepseek.doctor.link_speed import expected_speed, judge_speed
    from deepseek.doctor.machine import Machine
    from deepseek.doctor.message_sizes import parse_sizes

    if plot is not None and (plot.suffix != ".svg" or not plot.absolute().parent.is_dir()):
        raise ConfigError(
            f"--plot {plot}: not an .svg file in a folder that exists", fix="give FILE.svg"
        )
    all_sizes = parse_sizes(sizes)
    machine = Machine()
    found = measure_bandwidth(all_sizes, nproc, machine, None if as_json else _print_row)
    if found is None:
        return 0  # rank 0 of the job prints
    facts = found.facts
    link = expected_speed(
        machine,
        backend=facts["backend"],
        num_hosts=facts["num_hosts"],
        device=facts["device"],
    )
    advice = judge_speed(found.peak_gbs, link, largest_bytes=all_sizes[-1])
    if plot is not None:
        draw_bandwidth(found, plot)
    if as_json:
        known = {"expected_gbs": link.gbs if link else None, "advice": advice}
        print(json.dumps({**found.as_json(), **known, "plot": str(plot) if plot else None}))
    else:
        _print_end(found, advice, plot)
    return int(found.num_wrong > 0)


def _print_row(found: "Bandwidth", row: "Measurement") -> None:
    from deepseek.doctor.bandwidth_table import column_heads, header, row_text

    if len(found.rows) == 1:
        print(header(found))
    if len(found.rows) == 1 or found.rows[-2].collective != row.collective:
        print(column_heads(row.collective))
    print(row_text(row), flush=True)


def _print_end(found: "Bandwidth", advice: str | None, plot: Path | None) -> None:
    print(f"\nall-reduce reaches {found.peak_gbs:.3g} GB/s of bus bandwidth")
    if found.num_wrong:
        print(f"problem: {found.num_wrong} items of the results were wrong: look at the hardware")
    if advice:
        print(f"warning: {advice}")
    if plot is not None:
        print(f"  {plot}")
