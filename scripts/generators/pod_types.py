"""What Kubernetes itself says of the parts of a pod that the chart's values set: `kubectl get --raw /openapi/v3/api/v1`.

    (kubectl version -o json; kubectl get --raw /openapi/v3/api/v1) | PYTHONPATH=scripts python -m generators.pod_types

writes `tests/charts/pod-types.json`, with which `tests/charts/test_pod_types.py` compares the chart's schema.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "tests" / "charts" / "pod-types.json"
ROOTS = {
    "extraEnv": "EnvVar",
    "extraVolumes": "Volume",
    "extraVolumeMounts": "VolumeMount",
    "imagePullSecrets": "LocalObjectReference",
    "resources": "ResourceRequirements",
    "tolerations": "Toleration",
    "affinity": "Affinity",
    "topologySpreadConstraints": "TopologySpreadConstraint",
}
"""Value of the chart -> type of the API; of a list: of its items."""


def extract(openapi: Any) -> dict[str, Any]:
    """Type -> its fields: the type of each, where it has fields of its own, its enum, and whether it has to be given."""
    schemas = {name.rpartition(".")[2]: schema for name, schema in openapi["components"]["schemas"].items()}
    found: dict[str, Any] = {}
    waiting = list(ROOTS.values())
    while waiting:
        name = waiting.pop()
        fields = schemas[name].get("properties", {})
        if name not in found and fields:
            required = set(schemas[name].get("required", []))
            found[name] = {field: _describe(each, is_required=field in required) for field, each in fields.items()}
            waiting += [type_ for each in fields.values() for type_ in _types(each)]
    return dict(sorted(found.items()))


def _describe(field: Any, *, is_required: bool) -> dict[str, Any]:
    described = {"type": next(_types(field), None), "enum": sorted(field.get("enum", [])), "required": is_required}
    return {key: value for key, value in described.items() if value}


def _types(field: Any) -> Iterator[str]:
    """The type that a field refers to, itself or by its items."""
    for node in (field, *field.get("allOf", ()), field.get("items", {}), *field.get("items", {}).get("allOf", ())):
        if "$ref" in node:
            yield node["$ref"].rpartition(".")[2]


def to_text(version: str, types: dict[str, Any]) -> str:
    """One line for each type."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in types.items())
    return f'{{\n "version": "{version}",\n "types": {{\n{lines}\n }}\n}}\n'


def main() -> None:
    """Read both answers from stdin and write the file."""
    text = sys.stdin.read()
    version, end = json.JSONDecoder().raw_decode(text)
    FILE.write_text(to_text(version["serverVersion"]["gitVersion"], extract(json.loads(text[end:]))), "utf-8")


if __name__ == "__main__":
    main()
