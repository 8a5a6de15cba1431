"""The chart's schema against Kubernetes' own types (`pod-types.json`): ours exist there; what is left out has a reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generators.pod_types import ROOTS

from tests.charts.helm import CHART

pytestmark = pytest.mark.security("S2")

_SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
_TYPES = json.loads((Path(__file__).parent / "pod-types.json").read_text("utf-8"))["types"]


def _named(prefix: str, names: str, reason: str) -> dict[str, str]:
    return {f"{prefix}.{name}": reason for name in names.split()}


_LEFT_OUT = (
    _named("Volume", "hostPath", "files of the node (S2)")
    | _named("Volume", "image", "whatever lies in a registry, beside image.*")
    | _named(
        "Volume",
        "gitRepo flocker photonPersistentDisk quobyte scaleIO storageos glusterfs rbd cephfs",
        "gone from Kubernetes",
    )
    | _named(
        "Volume",
        "awsElasticBlockStore azureDisk cinder gcePersistentDisk portworxVolume vsphereVolume",
        "CSI took their place",
    )
    | _named(
        "Volume",
        "azureFile fc flexVolume iscsi nfs",
        "a PersistentVolumeClaim, which an administrator grants, names servers and devices",
    )
    | _named("VolumeMount", "bindMountOptions recursiveReadOnly", "not in every version that the chart runs on")
    | _named("VolumeMount", "mountPropagation", "mounts of the node (S2)")
    | _named("VolumeMount", "subPathExpr", "a path that is known in the pod alone cannot be judged; subPath")
    | _named("VolumeProjection", "clusterTrustBundle podCertificate", "not in every version that the chart runs on")
    | _named("EnvVarSource", "fileKeyRef", "not in every version that the chart runs on")
    | _named("ConfigMapVolumeSource", "defaultUser", "files belong to the pod's own user (S2)")
    | _named("DownwardAPIVolumeSource", "defaultUser", "files belong to the pod's own user (S2)")
    | _named("DownwardAPIVolumeFile", "user", "files belong to the pod's own user (S2)")
    | _named("KeyToPath", "user", "files belong to the pod's own user (S2)")
    | _named("ProjectedVolumeSource", "defaultUser", "files belong to the pod's own user (S2)")
    | _named("SecretVolumeSource", "defaultUser", "files belong to the pod's own user (S2)")
    | _named("ServiceAccountTokenProjection", "user", "files belong to the pod's own user (S2)")
    | _named("EmptyDirVolumeSource", "mode", "not in every version that the chart runs on")
    | _named(
        "PersistentVolumeClaimSpec",
        "dataSource dataSourceRef selector volumeName",
        "volumes of others; make a PersistentVolumeClaim",
    )
    | _named(
        "PersistentVolumeClaimSpec",
        "volumeAttributesClassName",
        "belongs to a claim that stays; make a PersistentVolumeClaim",
    )
    | _named("PersistentVolumeClaimSpec", "volumeMode=Block", "a device, not a folder (S2)")
    | _named("VolumeResourceRequirements", "limits", "no storage reads it")
    | _named("ResourceRequirements", "claims", "names a resource claim of the pod, which the chart has not")
    | _named("Toleration", "operator=Gt operator=Lt", "behind a feature gate; the API server refuses it without")
    | _named(
        "ObjectMeta",
        "name namespace generateName ownerReferences finalizers",
        "Kubernetes names and owns an ephemeral claim",
    )
    | _named("ObjectMeta", "uid resourceVersion generation selfLink managedFields", "written by the API server")
    | _named(
        "ObjectMeta", "creationTimestamp deletionTimestamp deletionGracePeriodSeconds", "written by the API server"
    )
)
"""Field, or value of an enum -> why the chart does not take it."""


def _resolved(node: Any) -> Iterator[Any]:
    """The node without references, and each alternative that it allows."""
    if "$ref" in node:
        node = _SCHEMA["definitions"][node["$ref"].rpartition("/")[2]]
    yield node
    for key in ("anyOf", "allOf"):
        for each in node.get(key, ()):
            yield from _resolved(each)


def _fields(node: Any) -> dict[str, list[Any]]:
    """Field -> its schema in each alternative; of a list: those of its items."""
    found: dict[str, list[Any]] = {}
    for each in _resolved(node):
        if "items" in each:
            return _fields(each["items"])
        for name, field in each.get("properties", {}).items():
            found.setdefault(name, []).append(field)
    return found


def _texts(nodes: list[Any]) -> set[str]:
    """The values that an enum of ours allows; `""` stands for a field that is not given."""
    found = {each for node in nodes for one in _resolved(node) for each in one.get("enum", [one.get("const")])}
    return {text for text in found if isinstance(text, str) and text}


def _collect(nodes: list[Any], type_: str, into: dict[str, dict[str, list[Any]]]) -> None:
    """Type -> field -> what the schema says of it, in all places where it allows that type."""
    for node in nodes:
        for name, fields in _fields(node).items():
            into.setdefault(type_, {}).setdefault(name, []).extend(fields)
            next_type = _TYPES[type_].get(name, {}).get("type")
            if next_type in _TYPES:
                _collect(fields, next_type, into)


def test_fields_are_kubernetes_own_and_each_that_is_left_out_has_a_reason() -> None:
    ours: dict[str, dict[str, list[Any]]] = {}
    for value, type_ in ROOTS.items():
        _collect([_SCHEMA["properties"][value]], type_, ours)
    missing, unknown = set[str](), set[str]()
    for type_, fields in ours.items():
        unknown |= {f"{type_}.{name}" for name in fields.keys() - _TYPES[type_].keys()}
        missing |= {f"{type_}.{name}" for name in _TYPES[type_].keys() - fields.keys()}
        for name, nodes in fields.items():
            enum, texts = set(_TYPES[type_].get(name, {}).get("enum", [])), _texts(nodes)
            if enum:
                unknown |= {f"{type_}.{name}={text}" for text in (texts or {"any text"}) - enum}
                missing |= {f"{type_}.{name}={text}" for text in enum - texts}
    assert unknown == set(), "Kubernetes knows no such field or value"
    assert missing - _LEFT_OUT.keys() == set(), "give the field to the schema, or the reason to _LEFT_OUT"
    assert _LEFT_OUT.keys() - missing == set(), "no longer left out: take the line away"


def test_what_kubernetes_asks_for_the_schema_asks_for() -> None:
    """A pod without it would be refused by the API server."""
    not_asked = set[str]()
    for value, type_ in ROOTS.items():
        for node in _resolved(_SCHEMA["properties"][value].get("items", _SCHEMA["properties"][value])):
            required = {name for name, field in _TYPES[type_].items() if field.get("required")}
            not_asked |= {f"{type_}.{name}" for name in required - set(node.get("required", []))}
    assert not_asked == set()
