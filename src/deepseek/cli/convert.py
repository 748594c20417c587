"""`deepseek convert`: a model of another library -> a model file, and back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepseek.convert import Conversion
    from deepseek.models import ModelEngine


_OF_FOREIGN = {"family": "--family", "settings": "--set", "dtype": "--dtype"}
"""Options of weights of another library."""


def convert(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Model file, .safetensors, pickled file, Hugging Face folder, or name of timm.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="MODEL.bin; .safetensors or .pt of another library; or a new folder for"
            " Hugging Face.",
        ),
    ],
    to: Annotated[
        str, typer.Option(help="Names in a state dict: huggingface, timm, torchvision.")
    ] = "auto",
    family: Annotated[str | None, typer.Option(help="Family of the weights, if unclear.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Argument of the model, such as heads=12."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16, float16 or keep.")
    ] = "float32",
    verify: Annotated[
        bool, typer.Option("--verify", help="Run both models on the same inputs, and compare.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a pickled state dict, restricted.")
    ] = False,
    unsafe_pickle: Annotated[
        bool,
        typer.Option("--unsafe-pickle", help="Read a pickled module, in a process shut in."),
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print what became of each tensor.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert models of PyTorch, Hugging Face, timm and torchvision, and back."""
    args = read_settings(settings or [])
    _refuse_ignored(context, source)
    engine, conversion = _open(
        source, family=family, dtype=dtype, allow_pickle=allow_pickle, unsafe_pickle=unsafe_pickle,
        **args,
    )  # fmt: skip
    report = conversion.report if conversion else None
    result: dict[str, Any] = {"out": str(target), "report": report.to_json() if report else None}
    difference = None
    if verify:
        from deepseek.convert.verification import verify_conversion, verify_written

        difference = verify_conversion(conversion) if conversion else verify_written(engine, to)
        result["largest_difference"] = difference.largest
    _write(engine, target, to, conversion)
    if as_json:
        print(json.dumps(result))
        return
    if report:
        print(report.table() + "\n" if table else "", end="")
        print(report.summary())
    if difference:
        print(f"verified: {difference.describe()}")
    print(f"{engine.describe()} -> {target}")


def read_settings(settings: list[str]) -> dict[str, Any]:
    """Return the arguments in KEY=VALUE texts; a value is JSON, or a text.

    Raises:
        ConfigError: there is no equals sign.
    """
    from deepseek.errors import ConfigError

    args: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--set {setting} is not KEY=VALUE", fix="write --set heads=12")
        try:
            args[key] = json.loads(value)
        except ValueError:
            args[key] = value
    return args


def _refuse_ignored(context: typer.Context, source: str) -> None:
    from deepseek.convert.source import is_model_file
    from deepseek.errors import ConfigError

    sources = {name: context.get_parameter_source(name) for name in _OF_FOREIGN}
    given = [_OF_FOREIGN[name] for name, at in sources.items() if at and at.name == "COMMANDLINE"]
    if given and is_model_file(source):
        raise ConfigError(
            f"{', '.join(given)} would be ignored: {source} is a model file of this library, and is"
            " written as it is",
            fix="leave them away, or give the weights that it was made of",
        )


def _open(source: str, **options: Any) -> "tuple[ModelEngine, Conversion | None]":
    from deepseek.convert import convert
    from deepseek.convert.source import is_model_file
    from deepseek.models import ModelEngine

    if is_model_file(source):
        return ModelEngine.load(source), None
    conversion = convert(source, **options)
    return conversion.engine, conversion


def _write(engine: "ModelEngine", target: Path, to: str, conversion: "Conversion | None") -> None:
    from deepseek.convert.export import STATE_SUFFIXES, deepseek_to_huggingface, write_state_dict

    if target.suffix == ".bin":
        engine.save(target)
    elif target.suffix in STATE_SUFFIXES:
        write_state_dict(engine, target, to)
    else:
        deepseek_to_huggingface(engine, target, conversion.source.files if conversion else None)
