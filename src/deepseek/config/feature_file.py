"""A feature spec as a file of YAML or JSON, to be read, edited and read back."""

import io
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepseek.config.features import FeatureSpec
from deepseek.errors import ConfigError


def read_features(path: str | Path) -> FeatureSpec:
    """Return the spec in a file.

    Raises:
        ConfigError: it cannot be read, or is no feature spec.
    """
    try:
        content = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read as a feature spec: {error}", fix="check the path, or mend it"
        ) from error
    try:
        return FeatureSpec.from_json(content or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", fix=error.fix) from error


def dump_features(spec: FeatureSpec) -> str:
    """Return a spec as YAML, an entry a line; vocabularies and edges too, where there are any."""
    yaml = YAML(typ="safe", pure=True)
    yaml.width = 2**20
    lines = []
    for section, entries in spec.to_json().items():
        lines.append(f"{section}:")
        for name, entry in entries.items():
            out = io.StringIO()
            yaml.default_flow_style = True
            yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
            yaml.dump({name: entry}, out)
            lines.append("  " + out.getvalue().strip()[1:-1])
    return "\n".join(lines) + "\n"


def write_features(spec: FeatureSpec, path: str | Path) -> None:
    """Write a spec to a file that `read_features` reads."""
    Path(path).write_text(dump_features(spec), encoding="utf-8")
