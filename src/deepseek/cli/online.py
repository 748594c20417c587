"""`deepseek online`: a service that learns from events, and what is done with it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Learn from events as they come, and rank.")
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings: docs/online.md.")]


@app.command("serve")
def serve(
    config: Config,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any that is free.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address; others than loopback need a token.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Hashes of the tokens that are let in.")
    ] = None,
    probe_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of /health and /ready alone.")
    ] = None,
) -> None:
    """Take events, learn from them, and rank, until Ctrl-C."""
    from deepseek.registry import import_extra

    for module in ("fastapi", "uvicorn", "httptools", "uvloop", "prometheus_client"):
        import_extra(module, "serve")
    from deepseek.cli.serve import log_to_stderr
    from deepseek.recsys.online.service import serve as run
    from deepseek.recsys.online.settings import read_settings

    settings = read_settings(config)
    given = {
        "port": port, "host": host, "probe_port": probe_port,
        "token_file": None if token_file is None else str(token_file),
    }  # fmt: skip
    told = {name: value for name, value in given.items() if value is not None}
    server = settings.server.model_copy(update=told)
    settings = settings.model_copy(update={"server": server})
    log_to_stderr("deepseek.online")

    def announce(url: str) -> None:
        print(f"model   {settings.model}\nfolder  {settings.folder}  log: {settings.log.kind}")
        print(f"{url}  (page /, interface /docs, counters /metrics; Ctrl-C ends)", flush=True)

    raise typer.Exit(run(settings, announce))


@app.command("learn")
def learn(config: Config) -> None:
    """Learn alone, until a signal: others take events and rank, with `trains: false`."""
    from deepseek.cli.serve import log_to_stderr
    from deepseek.recsys.online.service import learn as run
    from deepseek.recsys.online.settings import read_settings

    log_to_stderr("deepseek.online")
    run(read_settings(config))


@app.command("status")
def status(config: Config) -> None:
    """Print how far the service has learnt, and which version answers."""
    from deepseek.recsys.online.learner_process import read_status
    from deepseek.recsys.online.settings import read_settings
    from deepseek.recsys.online.versions import Versions

    settings = read_settings(config)
    found = read_status(settings.path)
    pointer = Versions(settings.path / "versions").current()
    pinned = ", pinned: deepseek online release ends that" if pointer.is_pinned else ""
    print(f"version     {pointer.version}{pinned}")
    if not found:
        print("the learner has said nothing yet")
        return
    print(f"learnt      {found['offset']:,} events, {found['lag_events']:,} wait")
    print(f"checkpoint  {found['checkpoint']:,} events")
    for label, metrics in found["labels"].items():
        shown = ", ".join(
            f"{name} {value:.4f}" for name in ("auc", "loss", "rate", "calibration", "drift")
            if (value := metrics.get(name)) is not None
        )  # fmt: skip
        print(f"{label:10}  {metrics['examples']:,} examples  {shown}")
    for part in ("join", "guard"):
        print(f"{part:10}  {', '.join(f'{name} {n:,}' for name, n in found[part].items())}")
    for reason in found["gate"]["reasons"]:
        print(f"turned down: {reason}")


@app.command("rollback")
def rollback(
    config: Config,
    to: Annotated[int | None, typer.Option(min=1, help="Version; else the one before.")] = None,
) -> None:
    """Let an older version answer, and keep it until `deepseek online release`."""
    from deepseek.recsys.online.settings import read_settings
    from deepseek.recsys.online.versions import Versions

    pointer = Versions(read_settings(config).path / "versions").roll_back(to)
    print(f"version {pointer.version} answers, and stays: deepseek online release ends that")


@app.command("release")
def release(config: Config) -> None:
    """Let new versions answer again."""
    from deepseek.recsys.online.settings import read_settings
    from deepseek.recsys.online.versions import Versions

    pointer = Versions(read_settings(config).path / "versions").release()
    print(f"version {pointer.version} answers, until the learner publishes the next")


@app.command("replay")
def replay(
    config: Config,
    output: Annotated[
        Path | None, typer.Option(help="Model file to write the learnt model to.")
    ] = None,
) -> None:
    """Learn the whole log again from the first model, and compare with the newest checkpoint."""
    from deepseek.recsys.online.replay import replay as run
    from deepseek.recsys.online.settings import read_settings

    found = run(read_settings(config), output)
    print(f"replayed    {found.offset:,} events, {found.num_updates:,} updates")
    print(f"weights     {found.weights}")
    if found.at_checkpoint is not None:
        same = "equal to the bit" if found.is_equal else "DIFFERENT"
        print(f"checkpoint  {found.at_checkpoint:,} events: {same}")
    raise typer.Exit(0 if found.is_equal in (None, True) else 1)


@app.command("salvage")
def salvage(config: Config) -> None:
    """Make a log out of one that was set aside, without its damaged records."""
    from deepseek.recsys.online.settings import read_settings
    from deepseek.recsys.online.sqlite_log import salvage as run

    kept, lost = run(read_settings(config).path / "log" / "events.db")
    print(f"{kept:,} records were kept, {lost:,} are lost")
