"""Arguments and options that several commands have, declared once."""

from pathlib import Path
from typing import Annotated

import typer

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file of a run.")]
AnyModel = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Model file of a run, file of a runtime, or folder of `deepseek optimize`.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="How text is read: label_column=sentiment; of several tasks, which: task=NAME; a"
        " table, where otherwise than in training: column_names=user,item,click.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: an accelerator.")]
Precision = Annotated[
    str,
    typer.Option(
        help="Of model files: fp32, bf16, fp16; auto: what the chip has, fp32 once quantised."
    ),
]
RunPrecision = Annotated[str, typer.Option(help="fp32, bf16, fp16, fp8; auto: by the chip.")]
RunDir = Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME-N by default.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of a batch on the CPU.")]
Trust = Annotated[
    str | None, typer.Option(metavar="SHA256", help="Of a file that can run code, and may.")
]
Region = Annotated[
    str | None,
    typer.Option(help="Of a chest CT, body or lungs: what does not touch it is left out."),
]
Flips = Annotated[
    str | None,
    typer.Option(metavar="AXES", help="Of d, h, w: means over volumes mirrored along them."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
