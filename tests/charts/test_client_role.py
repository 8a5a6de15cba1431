"""The Role for people who use mnist-k8s: off by default, exactly what the client asks for, never for the pods."""

from pathlib import Path
from typing import Any

import pytest

from tests.charts.helm import CHART, RenderError, find, pod_spec, render

_RULES = [
    {"apiGroups": ["batch"], "resources": ["cronjobs"], "verbs": ["list"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "delete", "get", "list", "patch", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
]


def _with_role(*subjects: dict[str, str]) -> dict[str, Any]:
    return {"clientRole": {"create": True, "subjects": list(subjects)}}


@pytest.mark.security("S7")
def test_no_rights_are_given_unless_asked_for() -> None:
    assert {manifest["kind"] for manifest in render()}.isdisjoint({"Role", "RoleBinding"})


@pytest.mark.security("S7")
def test_the_role_is_this_list_without_wildcards() -> None:
    role = find(render(_with_role()), "Role")
    assert role["rules"] == _RULES
    assert "*" not in str(role["rules"])


def test_without_subjects_nobody_is_bound() -> None:
    assert not [manifest for manifest in render(_with_role()) if manifest["kind"] == "RoleBinding"]


@pytest.mark.security("S7")
def test_accounts_users_and_groups_are_bound_and_the_pods_are_not() -> None:
    manifests = render(
        _with_role({"kind": "ServiceAccount", "name": "ci"}, {"kind": "User", "name": "ann@example.com"}),
        namespace="ml",
    )
    binding = find(manifests, "RoleBinding")
    assert binding["roleRef"]["name"] == find(manifests, "Role")["metadata"]["name"] == "train-client"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "ci", "namespace": "ml"},
        {"kind": "User", "name": "ann@example.com", "apiGroup": "rbac.authorization.k8s.io"},
    ]
    account = pod_spec(find(manifests, "Job"))["serviceAccountName"]
    assert account not in {subject["name"] for subject in binding["subjects"]}


@pytest.mark.security("S7")
@pytest.mark.parametrize("values", sorted((CHART / "ci").glob("*-values.yaml")), ids=lambda path: path.stem)
def test_no_pod_and_no_account_of_the_chart_mounts_a_token(values: Path) -> None:
    manifests = render(files=(values,))
    pods = [pod_spec(manifest) for manifest in manifests if manifest["kind"] in ("Job", "CronJob", "Pod")]
    accounts = [manifest for manifest in manifests if manifest["kind"] == "ServiceAccount"]
    assert pods
    for holder in (*pods, *accounts):
        assert holder["automountServiceAccountToken"] is False
    volumes = [volume for pod in pods for volume in pod.get("volumes", [])]
    assert not [volume for volume in volumes if "serviceAccountToken" in str(volume)]


@pytest.mark.parametrize(
    "subject",
    [
        {"kind": "Everybody", "name": "x"},
        {"kind": "User"},
        {"kind": "User", "name": ""},
        {"kind": "User", "name": "a", "verbs": "*"},
    ],
)
def test_other_subjects_are_refused(subject: dict[str, str]) -> None:
    with pytest.raises(RenderError, match="/clientRole/subjects/0"):
        render(_with_role(subject))
