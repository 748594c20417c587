"""What a setting may be, in words, read off its JSON schema so that the two cannot disagree."""

from typing import Any

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "null": "null",
    "object": "a section of keys and values",
    "array": "a list",
}
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


def expectation(schema: dict[str, Any]) -> str:
    """Return what `schema` allows: `a whole number >= 1 (samples), or "auto"`."""
    words = _alternatives(schema)
    if unit := schema.get("unit"):
        words[0] += f" ({unit})"
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " or " + words[-1]


def choices(schema: dict[str, Any]) -> list[str]:
    """Return the texts that `schema` allows by name."""
    found = [schema["const"]] if "const" in schema else list(schema.get("enum", ()))
    for option in schema.get("anyOf", ()):
        found += choices(option)
    return [entry for entry in found if isinstance(entry, str)]


def _alternatives(schema: dict[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [word for option in schema["anyOf"] for word in _alternatives(option)]
    if "const" in schema:
        return [_quoted(schema["const"])]
    if "enum" in schema:
        return [_quoted(entry) for entry in schema["enum"]]
    if "pattern" in schema:
        return [f"a text that matches {schema['pattern']}"]
    kind = schema.get("type", "object")
    if kind == "array":
        return [_array(schema)]
    limits = [f"{sign} {_figure(schema[name])}" for name, sign in BOUNDS.items() if name in schema]
    if kind == "string" and schema.get("minLength"):
        return ["a text"]
    return [" ".join([KINDS[kind], " and ".join(limits)]).strip()]


def _array(schema: dict[str, Any]) -> str:
    items = schema.get("prefixItems") or [schema.get("items", {"type": "string"})]
    each = _alternatives(items[0])[0].removeprefix("a ")
    if "prefixItems" in schema:
        return f"a list of {len(items)}, each a {each}"
    return f"a list, each entry a {each}"


def _figure(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
