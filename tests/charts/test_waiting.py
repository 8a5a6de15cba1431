"""What Helm, Flux and Argo CD wait for: a PVC that no run mounts yet. And the pod of `helm test`, which is not one of a run."""

import re
from typing import Any

import pytest
import yaml

from tests.charts.helm import Manifest, RenderError, find, is_binding, pod_spec, render, render_text
from tests.conftest import REPOSITORY

_NIGHTLY: dict[str, Any] = {"schedule": "0 3 * * *", "activeDeadlineSeconds": 60}
_RESOURCES = {"requests": {"cpu": 3, "memory": "5Gi"}, "limits": {"cpu": 3, "memory": "8Gi", "nvidia.com/gpu": 2}}
_PLACES: dict[str, Any] = {
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "low",
    "runtimeClassName": "nvidia",
    "resources": _RESOURCES,
    "queueName": "night",
}


def _binding(manifests: list[Manifest]) -> list[Manifest]:
    return [each for each in manifests if is_binding(each)]


@pytest.mark.parametrize("values", [_NIGHTLY, {**_NIGHTLY, "suspend": True}, {"suspend": True}])
def test_a_claim_that_no_run_mounts_yet_is_mounted_once(values: dict[str, Any]) -> None:
    manifests = render(values)
    [job] = _binding(manifests)
    spec = pod_spec(job)
    [container] = spec["containers"]
    assert [*container["command"], *container["args"]] == ["python", "-c", ""]
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    claim = find(manifests, "PersistentVolumeClaim")["metadata"]["name"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": claim}} in spec["volumes"]
    assert "env" not in container  # it waits for no Secret


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"queueName": "night"},  # a second Job would wait for room that the run takes
        {**_NIGHTLY, "persistence": {"bind": False}},
        {**_NIGHTLY, "persistence": {"existingClaim": "mine"}},
        {**_NIGHTLY, "store": {"uri": "s3://bucket"}},
    ],
)
def test_nothing_is_mounted_where_a_run_does_it_or_nothing_is_claimed(values: dict[str, Any]) -> None:
    assert not _binding(render(values))


def test_the_volume_is_bound_where_runs_fit() -> None:
    """The scheduler chooses by places and requests, so that both are those of a run; a queue counts it as it counts runs."""
    manifests = render({**_NIGHTLY, **_PLACES})
    [job] = _binding(manifests)
    bind, run = pod_spec(job), pod_spec(find(manifests, "CronJob"))
    placed = ("tolerations", "priorityClassName", "runtimeClassName", "serviceAccountName")
    assert {name: bind[name] for name in placed} == {name: run[name] for name in placed}
    assert bind["affinity"]["nodeAffinity"] == run["affinity"]["nodeAffinity"]  # with a queue, of nodeSelector
    without = find(render({**_NIGHTLY, **_PLACES, "queueName": ""}), "CronJob")
    assert (
        pod_spec(_binding(render({**_NIGHTLY, **_PLACES, "queueName": ""}))[0])["nodeSelector"]
        == pod_spec(without)["nodeSelector"]
    )
    assert bind["securityContext"] == run["securityContext"]
    assert bind["containers"][0]["resources"] == run["containers"][0]["resources"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    assert job["metadata"]["labels"]["app.kubernetes.io/name"] != "mnist-train"  # mnist-k8s lists no run of it


def test_it_goes_to_the_node_of_a_pod_that_runs_and_own_affinity_stays() -> None:
    """A ReadWriteOnce volume is on one node: elsewhere the pod would wait for the end of the run, and hold its devices."""
    wanted = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]
            }
        }
    }
    near = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack", "labelSelector": {}}]
        }
    }
    manifests = render({**_NIGHTLY, "affinity": wanted})
    [job] = _binding(manifests)
    affinity = pod_spec(job)["affinity"]
    assert affinity["nodeAffinity"] == wanted["nodeAffinity"]
    [term] = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    of_runs = find(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    own = job["spec"]["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= of_runs.items()
    assert term["labelSelector"]["matchLabels"].items() <= own.items()  # or the first of them would go nowhere
    assert pod_spec(_binding(render({**_NIGHTLY, "affinity": near}))[0])["affinity"] == near


def test_a_job_that_cannot_be_changed_gets_another_name() -> None:
    names = {
        _binding(render({**_NIGHTLY, **values}))[0]["metadata"]["name"]
        for values in ({}, {"train": {"epochs": 3}}, {"resources": _RESOURCES}, {"runAsUser": None})
    }
    assert len(names) == 3  # epochs are no matter of the pod that binds
    longest = _binding(render(_NIGHTLY, name="r" * 53))[0]["metadata"]["name"]
    assert len(longest) <= 63


@pytest.mark.parametrize(
    "more",
    [
        {"podLabels": {"team": "x"}},
        {"podAnnotations": {"team": "x"}},
        {"commonLabels": {"team": "x"}},
        {"commonAnnotations": {"team": "x"}},
        {"serviceAccount": {"annotations": {"azure.workload.identity/client-id": "x"}}},
        {"queueName": "another"},
        {"queueName": "night", "queuePriorityClass": "low"},
    ],
)
def test_another_template_or_queue_is_another_job(more: dict[str, Any]) -> None:
    """An upgrade can change neither in place."""
    before, after = (_binding(render({**_NIGHTLY, "queueName": "night", **values}))[0] for values in ({}, more))
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_it_waits_for_nothing_that_a_run_brings_along() -> None:
    """A Secret that comes later, a disk of its own, a rule that keeps runs apart: on their node the volume is."""
    apart = [
        {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "mnist-train"}},
        }
    ]
    own = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    values = {
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart}},
        "extraVolumes": [
            {
                "name": "keys",
                "secret": {
                    "secretName": "later",
                    "items": [{"key": ".dockerconfigjson", "path": ".docker/config.json"}],
                },
            },
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": own}}},
        ],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys"}, {"name": "scratch", "mountPath": "/scratch"}],
    }
    pod = pod_spec(_binding(render({**_NIGHTLY, **values}))[0])
    assert {volume["name"] for volume in pod["volumes"]} == {"tmp", "work", "data"}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {"tmp", "work", "data"}
    assert "podAntiAffinity" not in pod["affinity"]


def test_tools_of_gitops_keep_the_claim() -> None:
    annotations = find(render(), "PersistentVolumeClaim")["metadata"]["annotations"]
    assert annotations["helm.sh/resource-policy"] == "keep"
    assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"
    assert annotations["argocd.argoproj.io/ignore-healthcheck"] == "true"


def test_helm_test_has_its_own_resources_and_the_rules_of_the_queue() -> None:
    pod = find(render(_PLACES), "Pod")
    [container] = pod_spec(pod)["containers"]
    assert container["resources"]["requests"] == {"cpu": "250m", "memory": "768Mi", "ephemeral-storage": "128Mi"}
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    run = pod_spec(find(render(_PLACES), "Job"))
    assert pod_spec(pod)["affinity"] == run["affinity"]  # the volume may be there only
    own = {"test": {"resources": {"requests": {"memory": "3Gi"}, "limits": {"memory": "3Gi"}}}}
    assert pod_spec(find(render(own), "Pod"))["containers"][0]["resources"]["limits"]["memory"] == "3Gi"


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"limits": {"nvidia.com/gpu": 1}}, "nvidia.com/gpu"),
        (
            {"requests": {"memory": "4Gi"}},
            r"test.resources.requests.memory must be at most .* \(1536Mi\), received 4Gi",
        ),
        ({"requests": {"cpu": 2}}, r"test.resources.requests.cpu must be at most .* \(1\), received 2"),
    ],
)
def test_resources_of_helm_test_that_cannot_be_are_refused(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render({"test": {"resources": resources}})


def test_no_pod_of_helm_test_is_left_that_would_hold_the_claim() -> None:
    """The protection of a PVC counts finished pods, and `helm uninstall` does not delete the pods of hooks."""
    annotations = find(render(), "Pod")["metadata"]["annotations"]
    policies = set(annotations["helm.sh/hook-delete-policy"].split(","))
    assert policies == {"before-hook-creation", "hook-succeeded", "hook-failed"}
    assert annotations["helm.sh/hook-output-log-policy"] == "hook-failed"


def test_without_hooks_and_with_them_the_rest_is_the_same() -> None:
    """`helm template --no-hooks`, for `kubectl apply`: the pod of `helm test` is the only hook."""
    without = render_text(_NIGHTLY, flags=("--no-hooks",))
    assert not re.search(r"^kind: Pod$", without, re.MULTILINE)
    assert "helm.sh/hook" not in without
    assert render_text(_NIGHTLY).startswith(without.rstrip())


def test_the_examples_for_flux_and_argo_cd_hold_values_of_the_chart() -> None:
    page = (REPOSITORY / "docs" / "gitops.md").read_text()
    flux, argo = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    values = flux["spec"]["values"]
    assert argo["spec"]["source"]["helm"]["valuesObject"] == values
    assert find(render(values), "CronJob")["spec"]["schedule"] == values["schedule"]
    waits = [flux["spec"][action] for action in ("install", "upgrade", "rollback")]
    assert waits == [{"disableWaitForJobs": True}] * 3  # a run takes longer than Flux waits
