"""`deepseek serve`: model files -> predictions by HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import Device, Flips, Region


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL | NAME=MODEL | NAME/VERSION=MODEL]...",
            help="Model files, files of runtimes or folders of `deepseek optimize`; one without a"
            " name is called as it is.",
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--models", help="Folder of NAME/VERSION.bin.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="Hashes of the tokens that are let in.")
    ] = None,
    probe_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port that answers /health and /ready alone, without a token."
        ),
    ] = None,
    new_token: Annotated[
        Path | None,
        typer.Option(help="Print a new token, add its hash to this file, and end."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="Of model files: fp32, or bf16; other files have their own.")
    ] = "fp32",
    processes: Annotated[int, typer.Option(min=1, help="Processes of each model.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each process; by default all cores but one.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="SHA256", help="Of a file that can run code, and may."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Samples computed together.")] = 32,
    target_ms: Annotated[
        float, typer.Option(min=1, help="Longest time that a batch should take.")
    ] = 50.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Samples that may wait: 429.")] = 512,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Until a request is answered.")] = 30.0,
    body_s: Annotated[float, typer.Option(min=0.1, help="Until all of a body has come.")] = 20.0,
    max_body_mib: Annotated[float, typer.Option(min=0.01, help="Of a request.")] = 16.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 50_000_000,
    max_chars: Annotated[int, typer.Option(min=1, help="Of a text.")] = 100_000,
    max_voxels: Annotated[int, typer.Option(min=1, help="Of a volume.")] = 2**27,
    decoders: Annotated[
        int, typer.Option(min=1, help="Processes that read pictures, texts and volumes.")
    ] = 1,
    region: Region = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.95, help="Of windows of volumes.")] = 0.25,
    flips: Flips = None,
) -> None:
    """Answer requests for predictions, by HTTP."""
    from deepseek.errors import ConfigError

    if new_token is not None:
        from deepseek.deploy.service.tokens import new_token as make_token

        print(make_token(new_token))
        return
    if not models and folder is None:
        raise ConfigError(
            "there is nothing to serve", fix="deepseek serve runs/NAME-1/model.bin, or --models DIR"
        )
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"models={folder} is not a folder", fix="check the path")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r} is not known", fix="fp32 or bf16")
    files = dict(named_file(entry) for entry in models or [])
    if len(files) < len(models or []):
        raise ConfigError("two model files have the same name", fix="name them: NAME=MODEL.bin")
    from deepseek.cli.predict_volumes import axes_of
    from deepseek.registry import import_extra

    axes = axes_of(flips or "")
    if region is not None:
        from deepseek.medical.regions import find_region

        find_region(region)
        import_extra("scipy.ndimage", "medical")
    for module in ("fastapi", "uvicorn", "httptools", "uvloop", "prometheus_client"):
        import_extra(module, "serve")
    from deepseek.deploy.service import Limits, Pace, ServiceSettings
    from deepseek.deploy.service import serve as run

    log_to_stderr("deepseek.service")
    run(
        ServiceSettings(
            files, folder, host, port, token_file, probe_port, device, precision, processes,
            threads, tuple(trust or ()), Pace(max_batch, target_ms, max_waiting, decoders),
            Limits(
                int(max_body_mib * (1 << 20)), body_s, timeout_s, max_pixels, max_chars=max_chars,
                max_voxels=max_voxels,
            ),
            region, overlap, tuple(axes),
        ),
        _announce,
    )  # fmt: skip


def log_to_stderr(name: str) -> None:
    """Show what a logger says from INFO on."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def named_file(entry: str) -> tuple[tuple[str, str], Path]:
    """Return model, version and file of an argument: `[NAME[/VERSION]=]FILE`.

    Raises:
        ConfigError: there is no such file.
    """
    from deepseek.deploy.artefact import locate
    from deepseek.errors import ConfigError

    is_file = "=" not in entry or Path(entry).exists()  # a folder may be called runs/lr=0.1
    name, file = ("", entry) if is_file else entry.split("=", 1)
    path = locate(Path(file))
    if path.suffix == ".json":
        raise ConfigError(
            f"{file} says what is known of a model, and is none", fix=f"give {path.parent}/ alone"
        )
    if not path.is_file():
        raise ConfigError(f"{file} is not a file", fix="give the model.bin of a run")
    if is_file:
        # `runs/digits-1/model.bin` is better known by its run
        is_named_by_folder = path.stem == "model" or Path(file).is_dir()
        name = path.parent.name if is_named_by_folder and path.parent.name else path.stem
        name = name.replace("=", "-")
    model, _, version = name.partition("/")
    return (model, version or "1"), path


def _announce(shelf, url: str) -> None:
    for state in shelf.state():
        print(f"model  {state['name']}  version {state['active']}")
    print(f"{url}  (page /, interface /docs, counters /metrics; Ctrl-C ends)", flush=True)
