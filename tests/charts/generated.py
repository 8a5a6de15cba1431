"""The files of the chart that are made of others: schema and defaults of job/config.py, table of values.yaml.

`python -m tests.charts.generated` writes them; test_generated.py says when one is out of date.
"""

import json
import re
from typing import Any

import yaml

from job.config import Config
from tests.conftest import REPOSITORY

CHART = REPOSITORY / "charts" / "mnist-train"
SCHEMA = CHART / "values.schema.json"
DEFAULTS = CHART / "files" / "defaults.json"
README = CHART / "README.md"
_TABLE = re.compile(r"(<!-- values: .*? -->\n).*?(<!-- /values -->)", re.DOTALL)
_PRINTABLE = "^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\ufeff]*$"  # YAML would change or refuse the others
_NUMBER = r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$"  # `helm --set` makes a string of 0.5
_WHOLE = ("resources", "podLabels", "podAnnotations")  # one row each


def make_schema() -> str:
    """The hand-written part with the sections of the job's settings in front."""
    schema = json.loads((CHART / "values.schema.base.json").read_text())
    settings = Config.model_json_schema()
    sections = {name: _inline(settings["properties"][name], settings["$defs"]) for name in settings["properties"]}
    schema["properties"] = sections | schema["properties"]
    return json.dumps(schema, indent=2) + "\n"


def make_defaults() -> str:
    """Every setting's default, for the templates."""
    defaults = {
        section: info.annotation.model_construct().model_dump(mode="json")
        for section, info in Config.model_fields.items()
        if info.annotation is not None
    }
    return json.dumps(defaults, indent=2) + "\n"


def make_table() -> str:
    """A row for each value: the comment above it in values.yaml says what it is."""
    rows = [f"| `{name}` | `{default}` | {comment} |" for name, default, comment in describe_values()]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def describe_values() -> list[tuple[str, str, str]]:
    """(name, default, comment) of every value in values.yaml; neighbours share the comment above the first of them."""
    text = (CHART / "values.yaml").read_text()
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


def write() -> None:
    """Write all of them again."""
    SCHEMA.write_text(make_schema())
    DEFAULTS.parent.mkdir(exist_ok=True)
    DEFAULTS.write_text(make_defaults())
    README.write_text(_TABLE.sub(lambda match: match[1] + make_table() + match[2], README.read_text()))


if __name__ == "__main__":
    write()
