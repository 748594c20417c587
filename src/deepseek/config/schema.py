"""The configuration as data: its JSON schema for editors, and a resolved configuration as YAML."""

import io
from typing import Any

from ruamel.yaml import YAML

from deepseek.config.run import RunConfig, resolve


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of `model_config.yaml`, with units and descriptions."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
    }


def dump_config(config: RunConfig) -> str:
    """Return `config` as YAML with every setting, defaults too; `load_config` reads it back."""
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    out = io.StringIO()
    yaml.dump(resolve(config).model_dump(mode="json"), out)
    return out.getvalue()
