"""`deepseek init`: write a configuration to start from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.table_settings import TableSettings, check_no_settings

TEMPLATES = ("digits", "images", "text", "sentences")
VOLUMES, NODULES, TABLE = "volumes", "nodules", "table"


def init(
    template: Annotated[
        str, typer.Argument(help="digits, images, text, sentences, table, volumes or nodules.")
    ],
    settings: TableSettings = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your data: a folder with one folder per class, a file of text, a table, or a"
            " folder with images/ and labels/; cubes of nodules, or scans with annotations.csv."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Of volumes and nodules: memory to keep to, 8GiB; by default what there is."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Of a table: a column to learn; may be repeated.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("model_config.yaml"),
    force: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
) -> None:
    """Write a configuration to start from, and its JSON schema for editors."""
    from deepseek.config import json_schema

    if output.exists() and not force:
        from deepseek.errors import ConfigError

        raise ConfigError(
            f"{output} is there already", fix="give another --output, or --force to replace it"
        )
    text = filled_template(template, data, output, memory, label or (), force, settings or ())
    schema = output.with_suffix(".schema.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    schema.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    command = "deepseek train" + (
        "" if output.name == str(output) == "model_config.yaml" else f" {output}"
    )
    print(f"wrote {output} and {schema} (for editors)\nnext:  {command}")


def filled_template(
    template: str,
    data: Path | None,
    output: Path,
    memory: str | None = None,
    labels: Sequence[str] = (),
    replaces: bool = False,
    settings: Sequence[str] = (),
) -> str:
    """Return the text of a template with its names filled in.

    Raises:
        ConfigError: if there is no such template, or `data` is missing, wrong or not used.
    """
    from importlib.resources import files

    from deepseek.errors import ConfigError
    from deepseek.registry import did_you_mean

    known = (*TEMPLATES, TABLE, VOLUMES, NODULES)
    if template not in known:
        raise ConfigError(f"unknown template {template!r}", fix=did_you_mean(template, known))
    if memory is not None and template not in (VOLUMES, NODULES):
        raise ConfigError(
            f"--memory={memory} would be ignored: the template {template} does not depend on it",
            fix="leave it away",
        )
    if template != TABLE:
        of_tables = [*(f"--label={name}" for name in labels), *settings]
        check_no_settings(of_tables, f"the template {template}")
    text = (files("deepseek.config") / "templates" / f"{template}.yaml").read_text("utf-8")
    needs_data = "DATA_PATH" in text
    what = "folder" if template in ("images", VOLUMES, NODULES) else "file"
    if needs_data and data is None:
        raise ConfigError(
            f"the template {template} needs --data, the {what} of your data",
            fix=f"deepseek init {template} --data {what.upper()}",
        )
    if data is not None and not needs_data:
        raise ConfigError(
            f"the template {template} brings its own data; --data={data} would be ignored",
            fix="deepseek init images --data FOLDER, or leave --data away",
        )
    takes_file = what == "file" or template in (VOLUMES, NODULES)
    if data is not None and not (data.is_dir() or (takes_file and data.is_file())):
        raise ConfigError(f"--data={data} is not a {what}", fix=f"give the {what} of your data")
    if template == VOLUMES and data is not None:
        from deepseek.cli.init_volumes import fill_volumes

        text, chosen = fill_volumes(text, data, memory)
        print(f"{chosen.fingerprint.describe()}\n\n{chosen.describe()}\n")
    if template == NODULES and data is not None:
        from deepseek.cli.init_nodules import fill_nodules

        text, chosen = fill_nodules(text, data, memory)
        print(f"{chosen.found}\n\n{chosen.describe()}\n")
    if template == TABLE and data is not None:
        from deepseek.cli.init_tables import fill_table

        features = output.with_name(f"{output.stem}_features.yaml")
        text = fill_table(text, data, features, labels, settings, replaces=replaces)
        print(f"wrote {features}: what the columns mean")
    # JSON's form of a text is YAML's too, whatever is in it; the name alone where that is safe.
    path = str(data)
    plain = path.replace("/", "").replace("_", "").replace("-", "").replace(".", "").isalnum()
    path = path if plain and path[0] in "/._" else json.dumps(path, ensure_ascii=False)
    text = text.replace("SCHEMA_FILE", output.with_suffix(".schema.json").name)
    return text.replace("CONFIG_FILE", str(output)).replace("DATA_PATH", path)
