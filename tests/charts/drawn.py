"""Values of the chart, drawn from its own schema: everything that the schema allows, small."""

import copy
import json
from functools import cache, reduce
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from tests.charts.helm import CHART, IMAGE

Schema = dict[str, Any]
_CHARACTERS = st.characters(exclude_categories=["Cs"])
_MOST = 2  # of a list, or of the free keys of an object
_SETTINGS = ("run", "data", "model", "train", "cluster", "checkpoint", "store", "promotion", "retention", "observe")


_ONLY_THE_SERVER_KNOWS: dict[str, list[str]] = {
    "timeZone": ["Etc/UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"],
    "cidr": ["0.0.0.0/0", "::/0", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", "64:ff9b::a00:0/104"],
}
"""What no pattern can say: which time zones there are, and that no bit is set beyond a prefix."""
_EXTRA_OBJECTS: list[list[dict[str, Any]]] = [
    [],
    [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}, "data": {"a.py": "x = '{{ 1 }}'\n"}},
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "more"},
            "spec": {"minAvailable": 1},
        },
    ],
    [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "more"}}],
]
_SCHEDULES = ["", "@daily", "0 3 * * *", "*/5 0-6,22 1,15 JAN-jun MON", "every night"]


@cache
def _schema() -> Schema:
    found: Schema = json.loads((CHART / "values.schema.json").read_text())
    return found


def values() -> st.SearchStrategy[dict[str, Any]]:
    """Values that `values.schema.json` accepts: some sections, an image, and of the settings only where the store is."""
    schema = copy.deepcopy(_schema())
    sections = {
        name: each for name, each in schema["properties"].items() if name not in ("enabled", "image", *_SETTINGS)
    }
    sections["schedule"] = {"enum": _SCHEDULES}
    sections["timeZone"] = {"enum": _ONLY_THE_SERVER_KNOWS["timeZone"]}
    sections["extraObjects"] = {"enum": _EXTRA_OBJECTS}
    store = st.fixed_dictionaries({"uri": st.sampled_from(["s3://bucket", "gs://bucket/a/b", "az://container/prefix"])})
    optional = {name: _values_of(section) for name, section in sections.items()} | {"store": store}
    drawn = st.fixed_dictionaries({"image": st.just(IMAGE)}, optional=optional).map(_repaired)
    return drawn.filter(Draft7Validator(_schema()).is_valid)


def _repaired(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart would refuse nearly each time: a schedule without a deadline, a volume that is none, a short grace, a queue
    that is also held, and what nothing would read.
    """
    if values.get("schedule"):
        values["activeDeadlineSeconds"] = values.get("activeDeadlineSeconds") or 7200
    volumes = [volume["name"] for volume in values.get("extraVolumes", [])]
    containers = values.get("initContainers", [])
    for mount in sum((each.get("volumeMounts", []) for each in containers), values.get("extraVolumeMounts", [])):
        mount["name"] = (volumes or ["work"])[0]
    policy = values.get("networkPolicy", {})
    if policy.get("extraEgress") or policy.get("ingressFrom"):
        policy["enabled"] = True
    if not values.get("queueName"):
        values.pop("queuePriorityClass", None)
    elif not values.get("schedule"):
        values.pop("suspend", None)
    if "terminationGracePeriodSeconds" in values:
        values["terminationGracePeriodSeconds"] += 60
    for each in [values, *containers]:
        each.get("resources", {}).pop("requests", None)
    if values.get("dnsPolicy") == "None":
        values.pop("dnsPolicy")
    _leave_out_what_is_ignored(values)
    return values


def _leave_out_what_is_ignored(values: dict[str, Any]) -> None:
    """As `mnist-train.checkIgnored` asks for it."""
    for name in ("retry",) if values.get("schedule") else ("timeZone", "concurrencyPolicy", "startingDeadlineSeconds"):
        values.pop(name, None)
    dashboard = values.get("monitoring", {}).get("dashboard", {})
    if not dashboard.get("enabled"):
        dashboard.clear()
    claim = values.get("persistence", {})
    if claim.get("existingClaim") or (values.get("store") and not claim.get("cache")):
        for name in ("size", "storageClassName", "accessModes", "labels", "annotations"):
            claim.pop(name, None)
    switches = (
        ("serviceAccount", "create", True),
        ("networkPolicy", "enabled", False),
        ("clientRole", "create", False),
    )
    of_switch = {
        "serviceAccount": ["annotations"],
        "networkPolicy": ["egressCIDRs", "egressPorts", "dnsPorts"],
        "clientRole": ["subjects"],
    }
    for section, switch, default in switches:
        for name in of_switch[section] if not values.get(section, {}).get(switch, default) else []:
            values.get(section, {}).pop(name, None)
    if "monitoring" in values:
        values["monitoring"]["scrape"] = "podMonitor"
        values["monitoring"].get("rules", {}).update(enabled=True)


def draw(num: int, *, seed: int) -> list[dict[str, Any]]:
    """That many different values, for tests that look at all of them at once."""
    found: list[dict[str, Any]] = []

    @hypothesis.seed(seed)
    @settings(max_examples=num, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(values())
    def collect(drawn: dict[str, Any]) -> None:
        found.append(drawn)

    collect()
    return found


def _named(reference: str) -> Schema:
    """What a reference such as `#/definitions/name` means."""
    found: Schema = reduce(lambda node, key: node[key], reference.removeprefix("#/").split("/"), _schema())
    return found


def _values_of(schema: Schema) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in _ONLY_THE_SERVER_KNOWS:
            return st.sampled_from(_ONLY_THE_SERVER_KNOWS[name])
        return st.deferred(lambda: _values_of(_named(schema["$ref"])))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for several in ("anyOf", "allOf"):
        if several in schema and "type" not in schema:
            return st.one_of([_values_of(each) for each in schema[several]])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_OF_TYPE[kind](schema) for kind in kinds])


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    most = schema.get("maxLength", 300)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True, alphabet=_CHARACTERS).filter(
            lambda text: len(text) <= most
        )
    return st.text(_CHARACTERS, max_size=min(most, 20))


def _integers(schema: Schema) -> st.SearchStrategy[int]:
    return st.integers(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1), schema.get("maximum", 2**31 - 1))


def _lists(schema: Schema) -> st.SearchStrategy[list[Any]]:
    if schema.get("maxItems") == 0:
        return st.just([])
    most = schema.get("maxItems", schema.get("minItems", 0) + _MOST)
    return st.lists(_values_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)


def _objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    fields = schema.get("properties", {})
    required = {name: _values_of(fields[name]) for name in schema.get("required", [])}
    optional = {name: _values_of(field) for name, field in fields.items() if name not in required}
    if "minProperties" in schema:
        return st.sampled_from(sorted(optional)).flatmap(
            lambda name: st.fixed_dictionaries(required | {name: optional[name]})
        )
    if "patternProperties" in schema:
        keyed = [
            st.dictionaries(_texts({"pattern": pattern}), _values_of(each), max_size=1)
            for pattern, each in schema["patternProperties"].items()
        ]
        named = st.fixed_dictionaries(required, optional=optional)
        return st.tuples(named, *keyed).map(lambda parts: {name: part[name] for part in parts for name in part})
    if not isinstance(schema.get("additionalProperties"), dict):
        return st.fixed_dictionaries(required, optional=optional)
    keys = _texts(schema.get("propertyNames", {"pattern": "^[a-z]{1,8}$"}))
    return st.dictionaries(keys, _values_of(schema["additionalProperties"]), max_size=_MOST)


_OF_TYPE = {
    "string": _texts,
    "integer": _integers,
    "number": lambda _: st.sampled_from([0.5, 1.5, 2.0]),
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
    "array": _lists,
    "object": _objects,
}
