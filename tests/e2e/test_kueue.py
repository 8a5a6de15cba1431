"""A queue with room for one run. Needs Kueue in the cluster: scripts/kueue.py builds and installs one."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Namespace, Object, run_command, wait_until

_LONG: Object = {"train": {"epochs": 200}, "checkpoint": {"interval_seconds": 2}}
_LABEL = "mnist-train/kueue=true"  # of the namespaces whose Jobs scripts/kueue.py shows to its Kueue
_API = "kueue.x-k8s.io/v1beta2"
_ROOM = {"cpu": "150m", "memory": "384Mi", "ephemeral-storage": "96Mi"}  # for one pod of base_values, and not for two


@pytest.fixture
def queue(ns: Namespace) -> Iterator[Object]:
    """Values of a LocalQueue in the namespace; what it needs beside it is named after the namespace."""
    has_kueue = subprocess.run(
        ["kubectl", "get", "customresourcedefinition", "workloads.kueue.x-k8s.io"], capture_output=True, check=False
    )
    if has_kueue.returncode:
        pytest.skip("no Kueue in this cluster: scripts/kueue.py up installs one")
    run_command("kubectl", "label", "namespace", ns.name, _LABEL)
    objects = _cluster_wide(ns.name)
    ns.apply(*objects)
    ns.apply(
        _made("LocalQueue", "team", {"clusterQueue": ns.name}), _made("LocalQueue", "other", {"clusterQueue": ns.name})
    )
    yield {"queueName": "team", "queuePriorityClass": f"{ns.name}-low"}
    for job in ns.get("job"):
        ns.kubectl("delete", "job", job["metadata"]["name"], "--wait=false")
    wait_until(lambda: not ns.get("workload"), "end of the workloads", seconds=90)
    ns.kubectl("delete", "localqueue", "--all")
    for each in reversed(objects):
        run_command("kubectl", "delete", each["kind"], each["metadata"]["name"], "--timeout=60s")


def _made(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _cluster_wide(name: str) -> list[Object]:
    quotas = [{"name": resource, "nominalQuota": room} for resource, room in _ROOM.items()]
    group = {"coveredResources": list(_ROOM), "flavors": [{"name": name, "resources": quotas}]}
    priorities = {"low": 1, "high": 2}
    return [
        _made("ResourceFlavor", name, {"nodeLabels": {"kubernetes.io/os": "linux"}}),
        _made(
            "ClusterQueue",
            name,
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [group],
            },
        ),
        *(
            {
                "apiVersion": _API,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": f"{name}-{each}"},
                "value": value,
            }
            for each, value in priorities.items()
        ),
    ]


def _is_suspended(ns: Namespace, job: str) -> bool:
    return bool(ns.job(job)["spec"]["suspend"])


@pytest.mark.long
def test_the_second_run_waits_a_third_preempts_the_first_and_all_end_in_the_same_weights(
    ns: Namespace, queue: Object
) -> None:
    first = ns.install("first", _LONG, queue)
    pod = ns.wait_for_training(first)
    second = ns.install("second", _LONG, queue)
    assert (
        ns.install("first", _LONG, queue) == first
    )  # an upgrade that changes nothing, after Kueue has changed the Job
    with pytest.raises(AssertionError, match="queue-name"):
        ns.kubectl("label", "job", first, "kueue.x-k8s.io/queue-name=other", "--overwrite")
    moved = ns.install("second", _LONG, queue | {"queueName": "other"})
    assert moved != second
    assert second not in [job["metadata"]["name"] for job in ns.get("job")]
    assert _is_suspended(ns, moved)
    assert not ns.pods(moved)
    with ns.following(pod) as events:
        urgent = ns.install("urgent", queue | {"queuePriorityClass": f"{ns.name}-high"})
    [end] = [event for event in events if event["event"] == "run.end"]
    assert (end["outcome"], end["code"]) == ("interrupted", 75)
    assert ns.wait_for_end(urgent) == "Complete"
    assert ns.wait_for_end(first) == "Complete"
    last = ns.pods(first)[-1]["metadata"]["name"]
    restored = next(event for event in ns.events_of(last) if event["event"] == "checkpoint.restored")
    assert restored["step"] == end["step"]
    assert ns.job(first)["status"].get("failed", 0) == 0
    assert ns.wait_for_end(moved) == "Complete"
    assert ns.commit(first)["weights_digest"] == ns.commit(moved)["weights_digest"]
    print(json.dumps({"interrupted at step": end["step"], "weights": ns.commit(first)["weights_digest"]}))
