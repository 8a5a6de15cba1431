"""Records what a real API server says of Jobs in all kinds of trouble, for test_status.py. `python -m tests.k8s.record`

Busybox Jobs with the labels, container name and podFailurePolicy of the chart, in namespaces of their own. Needs kubectl, a
cluster, and busybox:1 on its nodes; takes minutes. What it writes is read by people: look at the difference before committing.
"""

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.contract import ExitCode
from tests.e2e.cluster import made_namespace, run_command

Object = dict[str, Any]
RECORDED = Path(__file__).parent / "recorded"
_SECONDS = 150.0
_FAIL = [code.value for code in ExitCode if code.again == "no"]
_STOP_SLOWLY = 'trap "sleep 25; exit 75" TERM; sleep 600 & wait'
_LOG = [
    {"event": "train.start", "epochs": 20},
    {"event": "train.progress", "step": 700, "epoch": 2, "accuracy": 0.5, "eta_seconds": 41.5},
    {"event": "epoch.end", "step": 938, "epoch": 2, "test_accuracy": 0.61},
]


class Recorder:
    """One namespace in which cases are made, and looked at until each is what it is meant to show."""

    def __init__(self, namespace: Any) -> None:
        self.ns = namespace
        self.waiting: dict[str, Callable[[Object, list[Object], list[Object]], bool]] = {}

    def start(self, name: str, until: Callable[[Object, list[Object], list[Object]], bool], **changes: Any) -> None:
        self.ns.apply(make_job(name, **changes))
        self.waiting[name] = until

    def snapshot(self, name: str) -> tuple[Object, list[Object], list[Object]]:
        return next(each[1:] for each in self._look() if each[0] == name)

    def _look(self) -> list[tuple[str, Object, list[Object], list[Object]]]:
        """Every Job with its pods and events, by three requests."""
        jobs, pods, events = (self.ns.get(kind) for kind in ("job", "pod", "event"))
        found = []
        for job in jobs:
            name = job["metadata"]["name"]
            ours = [pod for pod in pods if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == name]
            ours.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
            names = {name, *(pod["metadata"]["name"] for pod in ours)}
            found.append((name, job, ours, [each for each in events if each["involvedObject"]["name"] in names]))
        return found

    def collect(self) -> None:
        deadline = time.monotonic() + _SECONDS
        while self.waiting and time.monotonic() < deadline:
            for name, job, pods, events in self._look():
                if name in self.waiting and self.waiting[name](job, pods, events):
                    self._write(name, job, pods, events)
                    del self.waiting[name]
            time.sleep(0.7)
        if self.waiting:
            print("not recorded:", ", ".join(self.waiting))

    def _write(self, name: str, job: Object, pods: list[Object], events: list[Object]) -> None:
        log = _LOG if any(state(pod).get("running") for pod in pods) else []
        content = {
            "job": prune_job(job),
            "pods": [prune_pod(pod) for pod in pods],
            "events": [prune_event(event) for event in events],
            "log": log,
        }
        (RECORDED / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print("recorded", name, flush=True)


def make_job(
    name: str,
    *,
    command: str = "exit 0",
    backoff: int = 0,
    container: Object | None = None,
    pod: Object | None = None,
    spec: Object | None = None,
    labels: Object | None = None,
) -> Object:
    """A Job like the chart's, with busybox in place of TensorFlow."""
    train = {
        "name": "train",
        "image": "busybox:1",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", command],
        "args": ["run", f"--run.id=ml.{name}"],
        **(container or {}),
    }
    every = {"app.kubernetes.io/name": "mnist-train", "app.kubernetes.io/instance": "train", **(labels or {})}
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": _FAIL}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": every},
        "spec": {
            "backoffLimit": backoff,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": {
                "metadata": {"labels": every},
                "spec": {"restartPolicy": "Never", "containers": [train], **(pod or {})},
            },
            **(spec or {}),
        },
    }


def state(pod: Object) -> Object:
    statuses = pod["status"].get("containerStatuses") or [{}]
    found: Object = statuses[0].get("state") or {}
    return found


def ended(kind: str) -> Callable[[Object, list[Object], list[Object]], bool]:
    return lambda job, pods, events: any(
        each["type"] == kind and each["status"] == "True" for each in job["status"].get("conditions", [])
    )


def waits_for(*reasons: str) -> Callable[[Object, list[Object], list[Object]], bool]:
    return lambda job, pods, events: any((state(pod).get("waiting") or {}).get("reason") in reasons for pod in pods)


def told(reason: str) -> Callable[[Object, list[Object], list[Object]], bool]:
    return lambda job, pods, events: any(event["reason"] == reason for event in events)


def unscheduled(job: Object, pods: list[Object], events: list[Object]) -> bool:
    return any(
        each["type"] == "PodScheduled" and each["status"] == "False"
        for pod in pods
        for each in pod["status"].get("conditions", [])
    )


def runs(job: Object, pods: list[Object], events: list[Object]) -> bool:
    return any(state(pod).get("running") for pod in pods)


def terminates(job: Object, pods: list[Object], events: list[Object]) -> bool:
    return any("deletionTimestamp" in pod["metadata"] and state(pod).get("running") for pod in pods)


def prune_job(job: Object) -> Object:
    """What `judge` may look at."""
    spec = {key: job["spec"][key] for key in ("suspend", "backoffLimit", "activeDeadlineSeconds") if key in job["spec"]}
    containers = [
        {"name": each["name"], "args": each.get("args", [])} for each in job["spec"]["template"]["spec"]["containers"]
    ]
    spec["template"] = {"spec": {"containers": containers}}
    return {"metadata": _metadata(job), "spec": spec, "status": job.get("status", {})}


def prune_pod(pod: Object) -> Object:
    containers = [{"name": each["name"], "image": each["image"]} for each in pod["spec"]["containers"]]
    status = {
        key: value
        for key, value in pod["status"].items()
        if key in ("phase", "conditions", "containerStatuses", "reason", "message")
    }
    spec = {"nodeName": pod["spec"].get("nodeName"), "containers": containers}
    return {"metadata": _metadata(pod), "spec": spec, "status": status}


def prune_event(event: Object) -> Object:
    kept = ("type", "reason", "message", "firstTimestamp", "lastTimestamp", "eventTime", "series")
    about = {key: event["involvedObject"].get(key) for key in ("kind", "name")}
    return {key: event[key] for key in kept if event.get(key)} | {"involvedObject": about}


def _metadata(thing: Object) -> Object:
    kept = ("name", "creationTimestamp", "deletionTimestamp", "labels")
    return {key: thing["metadata"][key] for key in kept if key in thing["metadata"]}


def _message(**fields: Any) -> str:
    return f"echo '{json.dumps(fields)}' > /dev/termination-log; "


def start_ends(recorder: Recorder) -> None:
    done = _message(
        run="ml.x", outcome="committed", code=0, step=9380, epoch=20, accuracy=0.88, commit="runs/x/COMMIT.json"
    )
    recorder.start("succeeded", ended("Complete"), command=done)
    recorder.start("succeeded-without-message", ended("Complete"))
    for code in (*(code.value for code in ExitCode if code), 42, 137, 139):
        text = _message(outcome="failed", code=code, reason=f"the reason of {code}", step=469, epoch=1)
        recorder.start(f"exit-{code}", ended("Failed"), command=f"{text}exit {code}")
    running = _message(outcome="running", step=405, epoch=9)
    limits = {"resources": {"limits": {"memory": "24Mi"}}}
    recorder.start("out-of-memory", ended("Failed"), command=f"{running}exec tail /dev/zero", container=limits)
    recorder.start(
        "deadline",
        ended("Failed"),
        command="sleep 600",
        spec={"activeDeadlineSeconds": 5},
        pod={"terminationGracePeriodSeconds": 1},
    )
    recorder.start("cannot-start", ended("Failed"), container={"command": ["/no/such/program"]})
    recorder.start(
        "between-retries",
        lambda job, pods, events: job["status"].get("failed") == 1 and not job["status"].get("active"),
        command="exit 69",
        backoff=6,
    )
    recorder.start(
        "second-attempt",
        lambda job, pods, events: job["status"].get("failed") == 1 and runs(job, pods, events),
        command="sleep 6; exit 69",
        backoff=6,
    )
    recorder.start("running", runs, command="sleep 600")


def start_waits(recorder: Recorder) -> None:
    recorder.start("image-not-found", waits_for("ImagePullBackOff"), container={"image": "registry.invalid/none:1"})
    recorder.start(
        "image-never-pulled", waits_for("ErrImageNeverPull"), container={"image": "none:1", "imagePullPolicy": "Never"}
    )
    recorder.start("image-name-invalid", waits_for("InvalidImageName"), container={"image": "Not/A_Name::1"})
    recorder.start(
        "secret-missing",
        waits_for("CreateContainerConfigError"),
        container={"envFrom": [{"secretRef": {"name": "store-keys"}}]},
    )
    recorder.start(
        "root-refused", waits_for("CreateContainerConfigError"), pod={"securityContext": {"runAsNonRoot": True}}
    )
    recorder.start(
        "volume-missing",
        told("FailedMount"),
        pod={"volumes": [{"name": "v", "configMap": {"name": "none"}}]},
        container={"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
    )
    for what, key, amount in (("cpu", "cpu", "900"), ("memory", "memory", "9Ti"), ("gpu", "nvidia.com/gpu", "1")):
        amounts = {"requests": {key: amount}, "limits": {key: amount}}
        recorder.start(f"no-{what}", unscheduled, container={"resources": amounts})
    recorder.start("no-node-fits", unscheduled, pod={"nodeSelector": {"disk": "none"}})
    recorder.start(
        "claim-missing", unscheduled, pod={"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "none"}}]}
    )
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "none",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    recorder.ns.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"}, "spec": claim}
    )
    recorder.start(
        "claim-unbound",
        unscheduled,
        pod={"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "unbound"}}]},
    )
    recorder.start("gated", unscheduled, pod={"schedulingGates": [{"name": "example.com/wait"}]})
    recorder.start("no-service-account", told("FailedCreate"), pod={"serviceAccountName": "none"})
    recorder.start("suspended", ended("Suspended"), spec={"suspend": True})
    recorder.start("queued", ended("Suspended"), spec={"suspend": True}, labels={"kueue.x-k8s.io/queue-name": "team"})


def start_stops(recorder: Recorder) -> None:
    slow = {"command": _STOP_SLOWLY, "pod": {"terminationGracePeriodSeconds": 60}}
    for name in ("evicted", "deleted", "suspending", "cancelled", "evicted-and-back"):
        recorder.start(name, runs, **slow)
        recorder.waiting.pop(name)
    names: dict[str, str] = {}
    for name in ("evicted", "deleted", "suspending", "cancelled", "evicted-and-back"):
        while not names.get(name):
            _, pods, _ = recorder.snapshot(name)
            names[name] = next((pod["metadata"]["name"] for pod in pods if state(pod).get("running")), "")
            time.sleep(0.5)
    for name in ("evicted", "evicted-and-back"):
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": names[name]}}
        path = f"/api/v1/namespaces/{recorder.ns.name}/pods/{names[name]}/eviction"
        run_command("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    recorder.ns.kubectl("delete", "pod", names["deleted"], "--wait=false")
    recorder.ns.kubectl("patch", "job", "suspending", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    recorder.ns.kubectl("delete", "job", "cancelled", "--wait=false", "--cascade=foreground")
    for name in ("evicted", "deleted", "suspending"):
        recorder.waiting[name] = terminates
    recorder.waiting["cancelled"] = lambda job, pods, events: "deletionTimestamp" in job["metadata"]
    first = names["evicted-and-back"]
    recorder.waiting["evicted-and-back"] = lambda job, pods, events: any(
        state(pod).get("running") and pod["metadata"]["name"] != first for pod in pods
    )


def record_refused(kind: str, *manifests: Object, **changes: Any) -> None:
    with made_namespace(f"record-{uuid.uuid4().hex[:6]}", {}) as namespace:
        mode = "restricted" if kind == "pod-security" else "privileged"
        label = f"pod-security.kubernetes.io/enforce={mode}"
        run_command("kubectl", "label", "namespace", namespace.name, label, "--overwrite")
        if manifests:
            namespace.apply(*manifests)
        recorder = Recorder(namespace)
        recorder.start(kind, told("FailedCreate"), **changes)
        recorder.collect()


def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    with made_namespace(f"record-{uuid.uuid4().hex[:6]}", {}) as namespace:
        label = "pod-security.kubernetes.io/enforce=privileged"
        run_command("kubectl", "label", "namespace", namespace.name, label, "--overwrite")
        recorder = Recorder(namespace)
        start_ends(recorder)
        start_waits(recorder)
        recorder.collect()
        start_stops(recorder)
        recorder.collect()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    record_refused("quota", quota)
    limits = [{"type": "Container", "max": {"cpu": "100m"}, "default": {"cpu": "50m"}}]
    limit = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}}
    record_refused("limit-range", limit, container={"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}})
    record_refused("pod-security", container={"securityContext": {"privileged": True}})


if __name__ == "__main__":
    main()
