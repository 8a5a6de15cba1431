"""The generated files of the chart: schema and defaults of the settings, what decides a run, exit codes, the table of values."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from generators import dashboard
from generators.splice import splice, to_rows
from job.config import Config, default_values
from job.contract import ExitCode
from job.runs.identity import ORIGINAL_FIELDS, deciding_fields

_CHART = "charts/mnist-train"
_PRINTABLE = "^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\ufeff]*$"  # YAML would change or refuse the others
_NUMBER = (
    r"^[0-9]{1,40}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,2})?$"  # `helm --set` makes a string of 0.5; 1e400 is no number
)
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_WHOLE = ("resources", "podLabels", "podAnnotations")  # one row each


def make_files(root: Path, schema: type[Config] = Config) -> dict[str, str]:
    """Path -> content; `schema` has the settings."""
    chart = root / _CHART
    return {
        f"{_CHART}/values.schema.json": make_schema(chart, schema),
        f"{_CHART}/files/defaults.json": make_defaults(schema),
        f"{_CHART}/files/dashboard.json": dashboard.to_text(),
        f"{_CHART}/files/values.json": make_values(chart),
        f"{_CHART}/files/decides.json": make_deciding(schema),
        f"{_CHART}/files/bounds.json": make_bounds(schema),
        f"{_CHART}/files/exit-codes.json": make_exit_codes(),
        f"{_CHART}/README.md": splice(chart / "README.md", "values", make_table(chart)),
    }


def make_schema(chart: Path, schema: type[Config]) -> str:
    """The hand-written part with the sections of the job's settings in front."""
    values = json.loads((chart / "values.schema.base.json").read_text("utf-8"))
    settings = schema.model_json_schema()
    sections = {name: _inline(settings["properties"][name], settings["$defs"]) for name in settings["properties"]}
    for section in sections.values():
        section["properties"] = {name: _or_null(field) for name, field in section["properties"].items()}
    values["properties"] = sections | values["properties"]
    return json.dumps(values, indent=2) + "\n"


def make_defaults(schema: type[Config]) -> str:
    """Every setting's default, for the templates."""
    nested: dict[str, dict[str, object]] = {}
    for name, default in default_values(schema).items():
        section, _, field = name.partition(".")
        nested.setdefault(section, {})[field] = default
    return json.dumps(nested, indent=2) + "\n"


def make_values(chart: Path) -> str:
    """The defaults of the values, for the templates, which see only what was made of them and of the user's."""
    return json.dumps(yaml.safe_load((chart / "values.yaml").read_text("utf-8")), indent=2) + "\n"


def make_bounds(schema: type[Config]) -> str:
    """The bounds of the settings that may be given as the text of a number, which a JSON schema cannot compare."""
    settings = schema.model_json_schema()
    bounds: dict[str, dict[str, float]] = {}
    for section, reference in settings["properties"].items():
        for name, field in _inline(reference, settings["$defs"])["properties"].items():
            of_field = [each for each in (field, *field.get("anyOf", ())) if "number" in each.get("type", ())]
            bounds |= {f"{section}.{name}": {key: each[key] for key in _BOUNDS if key in each} for each in of_field}
    return json.dumps(bounds, indent=2) + "\n"


def make_deciding(schema: type[Config]) -> str:
    """The settings that a run id is made of: always, or once they differ from their default (`job/runs/identity.py`)."""
    names = deciding_fields(schema)
    lists = {
        "always": [name for name in names if name in ORIGINAL_FIELDS],
        "whenChanged": [name for name in names if name not in ORIGINAL_FIELDS],
    }
    return json.dumps(lists, indent=2) + "\n"


def make_exit_codes() -> str:
    """The exit codes after which another pod would end the same way."""
    return json.dumps({"failJob": [code.value for code in ExitCode if code.again == "no"]}, indent=2) + "\n"


def make_table(chart: Path) -> str:
    """A row for each value: the comment above it in values.yaml says what it is."""
    rows = ((f"`{name}`", f"`{default}`", comment) for name, default, comment in describe_values(chart))
    return to_rows(("value", "default", "meaning"), *rows)


def describe_values(chart: Path) -> list[tuple[str, str, str]]:
    """(name, default, comment) of every value in values.yaml; neighbours share the comment above the first of them."""
    text = (chart / "values.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    rows: list[tuple[str, str, str]] = []
    comment, parent, is_new_comment = "", "", True
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            words = line.lstrip(" #")
            comment, is_new_comment = words if is_new_comment else f"{comment} {words}", False
            continue
        is_new_comment = True
        match = re.match(r"( {0,2})([A-Za-z]+):( .*)?$", line)
        if match is None:
            continue
        indent, key, rest = match.groups()
        if not indent:
            parent = key if rest is None and key not in _WHOLE else ""
            if not parent:
                rows.append((key, json.dumps(values[key]), comment))
        elif parent:
            rows.append((f"{parent}.{key}", json.dumps(values[parent][key]), comment))
    return rows


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field that may also be null, which is its default."""
    if "anyOf" in field:
        null = {"type": "null"}
        return field if null in field["anyOf"] else field | {"anyOf": [*field["anyOf"], null]}
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    choices = {"enum": [*field["enum"], None]} if "enum" in field else {}
    return field | {"type": [*kinds, "null"]} | choices


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """The same schema without references, titles and defaults of whole sections: Helm reads it for every render."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inline(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    inlined = {
        key: {name: _inline(field, definitions) for name, field in value.items()}
        if key == "properties"
        else value
        if key == "default"
        else _inline(value, definitions)
        for key, value in node.items()
        if key != "title"
    }
    if inlined.get("type") == "number":
        return inlined | {"type": ["number", "string"], "pattern": _NUMBER}
    is_free_text = inlined.get("type") == "string" and not {"enum", "const", "pattern"} & set(inlined)
    return inlined | {"pattern": _PRINTABLE} if is_free_text else inlined
