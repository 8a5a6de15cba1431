"""Records what a real API server says of Jobs in all kinds of trouble, for test_status.py.

`python -m tests.k8s.record` records all cases, `python -m tests.k8s.record NAME...` only those (`workers-*`: a pattern). Busybox
Jobs with the labels, container name and podFailurePolicy of the chart, in namespaces of their own. Needs kubectl, a cluster, and
busybox:1 on its nodes; takes minutes. What it writes is read by people: look at the difference before committing.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from job.contract import ExitCode
from k8s.runs import created_pod_names
from tests.e2e.cluster import made_namespace, run_command

Object = dict[str, Any]
Until = Callable[[Object, list[Object], list[Object]], bool]
"""Whether a Job, with its pods and events, is what the case is to show."""
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

    def __init__(self, namespace: Any, patterns: list[str]) -> None:
        self.ns = namespace
        self.patterns = patterns
        self.waiting: dict[str, Until] = {}

    def wants(self, name: str) -> bool:
        """Whether this case was asked for."""
        return is_wanted(name, self.patterns)

    def start(self, name: str, until: Until, **changes: Any) -> None:
        if self.wants(name):
            self.ns.apply(make_job(name, **changes))
            self.waiting[name] = until

    def wait_for(self, name: str, until: Until) -> list[Object]:
        """Wait for what has to be there before something is done to it; returns the pods."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            found = self.snapshot(name)
            if until(*found):
                return found[1]
            time.sleep(0.3)
        raise TimeoutError(name)

    def evict(self, pod: str) -> None:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{self.ns.name}/pods/{pod}/eviction"
        run_command("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

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
            names = {name, *(pod["metadata"]["name"] for pod in ours), *created_pod_names(events, job=name)}
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
        log = _LOG if any(state(pod).get("running") and is_chief(pod) for pod in pods) else []
        content = {
            "job": prune_job(job),
            "pods": [prune_pod(pod) for pod in pods],
            "events": [prune_event(event) for event in events],
            "log": log,
        }
        (RECORDED / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print("recorded", name, flush=True)


def is_chief(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", "0") == "0")


def is_wanted(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def make_job(
    name: str,
    *,
    command: str = "exit 0",
    backoff: int = 0,
    container: Object | None = None,
    pod: Object | None = None,
    spec: Object | None = None,
    labels: Object | None = None,
    workers: int = 1,
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
    rules: list[Object] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": _FAIL}},
    ]
    limits: Object = {"backoffLimit": backoff}
    if workers > 1:
        rules.insert(
            1, {"action": "Ignore", "onExitCodes": {"containerName": "train", "operator": "In", "values": [75]}}
        )
        limits = make_indexed(workers, backoff=backoff)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": every},
        "spec": {
            **limits,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": {
                "metadata": {"labels": every},
                "spec": {"restartPolicy": "Never", "containers": [train], **(pod or {})},
            },
            **(spec or {}),
        },
    }


def make_indexed(workers: int, *, backoff: int) -> Object:
    """What the spec of a Job of several workers has in the place of `backoffLimit`."""
    return {
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": workers,
        "backoffLimitPerIndex": backoff,
        "maxFailedIndexes": 0,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }


def state(pod: Object) -> Object:
    statuses = pod["status"].get("containerStatuses") or [{}]
    found: Object = statuses[0].get("state") or {}
    return found


def ended(kind: str) -> Until:
    return lambda job, pods, events: any(
        each["type"] == kind and each["status"] == "True" for each in job["status"].get("conditions", [])
    )


def waits_for(*reasons: str) -> Until:
    return lambda job, pods, events: any((state(pod).get("waiting") or {}).get("reason") in reasons for pod in pods)


def told(reason: str) -> Until:
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
    kept: tuple[str, ...] = ("suspend", "backoffLimit", "activeDeadlineSeconds")
    if job["spec"].get("completionMode") == "Indexed":
        kept = ("suspend", "activeDeadlineSeconds", "completionMode", "completions", "backoffLimitPerIndex")
    spec = {key: job["spec"][key] for key in kept if key in job["spec"]}
    containers = [
        {"name": each["name"], "args": each.get("args", [])} for each in job["spec"]["template"]["spec"]["containers"]
    ]
    spec["template"] = {"spec": {"containers": containers}}
    return {"metadata": _metadata(job), "spec": spec, "status": job.get("status", {})}


def prune_pod(pod: Object) -> Object:
    shown = ("name", "image", "resources")
    containers = [{key: each[key] for key in shown if each.get(key)} for each in pod["spec"]["containers"]]
    status = {
        key: value
        for key, value in pod["status"].items()
        if key in ("phase", "conditions", "containerStatuses", "reason", "message")
    }
    grace = {"terminationGracePeriodSeconds": pod["spec"].get("terminationGracePeriodSeconds")}
    spec = {"nodeName": pod["spec"].get("nodeName"), **grace, "containers": containers}
    return {"metadata": _metadata(pod), "spec": spec, "status": status}


def prune_event(event: Object) -> Object:
    kept = ("type", "reason", "message", "firstTimestamp", "lastTimestamp", "eventTime", "series")
    about = {key: event["involvedObject"].get(key) for key in ("kind", "name")}
    return {key: event[key] for key in kept if event.get(key)} | {"involvedObject": about}


def _metadata(thing: Object) -> Object:
    kept = ("name", "creationTimestamp", "deletionTimestamp", "labels")
    annotations = {
        key: value
        for key, value in thing["metadata"].get("annotations", {}).items()
        if key.startswith("batch.kubernetes.io/job-")
    }
    found = {key: thing["metadata"][key] for key in kept if key in thing["metadata"]}
    return found | ({"annotations": annotations} if annotations else {})


def _message(**fields: Any) -> str:
    return f"echo '{json.dumps(fields)}' > /dev/termination-log; "


def start_ends(recorder: Recorder) -> None:
    done = _message(
        run="ml.x", outcome="committed", code=0, step=9380, epoch=20, accuracy=0.88, commit="runs/x/COMMIT.json"
    )
    recorder.start("succeeded", ended("Complete"), command=done)
    recorder.start(
        "succeeded-promoted", ended("Complete"), command=_message(**_DECIDED, verdict="promoted", promoted=True)
    )
    refused = _message(**_DECIDED, verdict="refused", promoted=False, reason=_REFUSED)
    recorder.start("succeeded-refused", ended("Complete"), command=refused)
    recorder.start("succeeded-without-message", ended("Complete"))
    for code in (*(code.value for code in ExitCode if code), 42, *_SIGNALS):
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
    start_deadlines(recorder)
    start_disk_limits(recorder)
    recorder.start("cannot-start", ended("Failed"), container={"command": ["/no/such/program"]})
    recorder.start(
        "between-retries",
        lambda job, pods, events: job["status"].get("failed") == 1 and not job["status"].get("active"),
        command="exit 69",
        backoff=6,
    )
    recorder.start(
        "between-retries-later",
        lambda job, pods, events: job["status"].get("failed") == 3 and not job["status"].get("active"),
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


_DECIDED = {"outcome": "committed", "code": 0, "step": 9380, "epoch": 20, "accuracy": 0.9722}
_REFUSED = "accuracy 0.9722 is 0.0167 below the champion that all are measured by (0.9889), p = 0.016 is below 0.05"
_SIGNALS = (132, 134, 135, 137, 139, 143)


def start_deadlines(recorder: Recorder) -> None:
    """The Job's deadline is over: before a container ran, while one ends, between two attempts; and a pod's own deadline."""
    soon = {"activeDeadlineSeconds": 8}
    recorder.start("deadline-unscheduled", ended("Failed"), pod={"nodeSelector": {"disk": "none"}}, spec=soon)
    recorder.start(
        "deadline-stopping",
        lambda *found: ended("FailureTarget")(*found) and terminates(*found),
        command=_STOP_SLOWLY,
        spec={"activeDeadlineSeconds": 30},
        pod={"terminationGracePeriodSeconds": 60},
    )
    recorder.start(
        "deadline-between-retries", ended("Failed"), command="exit 69", backoff=6, spec={"activeDeadlineSeconds": 25}
    )
    recorder.start(
        "deadline-of-the-pod", ended("Failed"), command="sleep 600", pod={**soon, "terminationGracePeriodSeconds": 1}
    )


def start_disk_limits(recorder: Recorder) -> None:
    """The kubelet evicts a pod that writes more than it may."""
    fill = "dd if=/dev/zero of=/tmp/much bs=1M count=40; sleep 600"
    limits = {"resources": {"limits": {"ephemeral-storage": "8Mi"}}}

    def has_failed(job: Object, pods: list[Object], events: list[Object]) -> bool:
        return any(pod["status"].get("phase") == "Failed" for pod in pods)

    recorder.start("disk-limit", has_failed, command=fill, container=limits, pod={"terminationGracePeriodSeconds": 1})
    volume = {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "8Mi"}}], "terminationGracePeriodSeconds": 1}
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/tmp"}]}
    recorder.start("volume-limit", has_failed, command=fill, container=mounted, pod=volume)


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
    as_root = {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}
    recorder.start("root-asked", waits_for("CreateContainerConfigError"), pod=as_root)
    missing_config = {"envFrom": [{"configMapRef": {"name": "own-settings"}}]}
    recorder.start("config-missing", waits_for("CreateContainerConfigError"), container=missing_config)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "half"},
        "stringData": {"AWS_ACCESS_KEY_ID": "x"},
    }
    recorder.ns.apply(secret)
    secret_key = {"secretKeyRef": {"name": "half", "key": "AWS_SECRET_ACCESS_KEY"}}
    missing_key = {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": secret_key}]}
    recorder.start("key-missing", waits_for("CreateContainerConfigError"), container=missing_key)
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


_STOPPED = ("evicted", "deleted", "suspending", "cancelled", "evicted-and-back", "evicted-and-killed")


def start_stops(recorder: Recorder) -> None:
    slow = {"command": _STOP_SLOWLY, "pod": {"terminationGracePeriodSeconds": 60}}
    names: dict[str, str] = {}
    deaf = {"command": 'trap "" TERM; while :; do sleep 1; done', "pod": {"terminationGracePeriodSeconds": 3}}
    wanted = [name for name in _STOPPED if recorder.wants(name)]
    for name in wanted:
        recorder.start(name, runs, **(deaf if name == "evicted-and-killed" else slow))
        recorder.waiting.pop(name)
    for name in wanted:
        names[name] = recorder.wait_for(name, runs)[0]["metadata"]["name"]
    for name in ("evicted", "evicted-and-back", "evicted-and-killed"):
        if name in names:
            recorder.evict(names[name])
    if "deleted" in names:
        recorder.ns.kubectl("delete", "pod", names["deleted"], "--wait=false")
    if "suspending" in names:
        recorder.ns.kubectl("patch", "job", "suspending", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    if "cancelled" in names:
        recorder.ns.kubectl("delete", "job", "cancelled", "--wait=false", "--cascade=foreground")
    first = names.get("evicted-and-back")
    untils: dict[str, Until] = {
        **dict.fromkeys(("evicted", "deleted", "suspending"), terminates),
        "cancelled": lambda job, pods, events: "deletionTimestamp" in job["metadata"],
        "evicted-and-killed": lambda job, pods, events: any(state(pod).get("terminated") for pod in pods),
        "evicted-and-back": lambda job, pods, events: any(
            state(pod).get("running") and pod["metadata"]["name"] != first for pod in pods
        ),
    }
    recorder.waiting |= {name: untils[name] for name in wanted}


# Several workers: index 0 is the chief. FAILURES is how often this index has failed before.
_FAILURES = {
    "env": [
        {
            "name": "FAILURES",
            "valueFrom": {
                "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-index-failure-count']"}
            },
        }
    ]
}
_GO_ON = 'trap "exit 75" TERM; sleep 600 & wait'
_UNTIL_TOLD = "until [ -e /tmp/told ]; do sleep 0.2; done; exit 75"
_SLOW_POD = {"terminationGracePeriodSeconds": 60}


def each_worker(chief: str, other: str) -> str:
    """What the chief runs, and what every other worker runs."""
    return f'if [ "$JOB_COMPLETION_INDEX" = 0 ]; then {chief}; else {other}; fi'


def states(pods: list[Object]) -> dict[str, list[str]]:
    """The container states of each worker's pods, oldest first: running, terminated, or none of both."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        found.setdefault(index, []).append(next(iter(state(pod)), "none"))
    return found


def workers_are(*expected: list[str]) -> Until:
    """Whether the pods of each worker, oldest first, are in these states."""
    return lambda job, pods, events: states(pods) == {str(index): each for index, each in enumerate(expected) if each}


def start_workers(recorder: Recorder) -> None:
    """Cases that come about by themselves."""
    recorder.start("workers-running", workers_are(["running"], ["running"]), command=_GO_ON, workers=2)
    recorder.start("workers-suspended", ended("Suspended"), spec={"suspend": True}, workers=2)
    refuse = _message(outcome="failed", code=64, reason="data.uri: other data than worker 0") + "exit 64"
    recorder.start("workers-exit-64", ended("Failed"), command=each_worker(_GO_ON, f"sleep 2; {refuse}"), workers=2)
    unavailable = _message(outcome="failed", code=69, reason="port 2222 is taken") + "exit 69"
    lost = _message(outcome="failed", code=76, reason="worker 1 was lost", step=405, epoch=9) + "exit 76"
    recorder.start(
        "workers-no-retries-left",
        ended("Failed"),
        command=each_worker(f"sleep 3; {lost}", f"sleep 2; {unavailable}"),
        workers=2,
    )
    killed = _message(outcome="running", step=405, epoch=9) + "exit 137"
    first = {"container": _FAILURES, "backoff": 6, "workers": 2}
    at_first = f'[ "$FAILURES" = 0 ] || {{ {_GO_ON}; }}'
    both = each_worker(f"{at_first}; sleep 3; {lost}", f"{at_first}; sleep 2; {killed}")
    recorder.start(
        "workers-killed",
        lambda job, pods, events: [pod["status"]["phase"] for pod in pods] == ["Failed", "Failed"],
        command=both,
        **first,
    )
    both_twice = workers_are(["terminated", "running"], ["terminated", "running"])
    recorder.start("workers-killed-and-back", both_twice, command=both, **first)
    alone = each_worker(_GO_ON, f"{at_first}; sleep 2; {killed}")
    recorder.start("workers-one-killed", workers_are(["running"], ["terminated"]), command=alone, **first)
    done = _message(outcome="committed", code=0, step=9380, epoch=20, accuracy=0.88, commit="runs/x/COMMIT.json")
    finish = each_worker(f"sleep 4; {done}exit 0", _STOP_SLOWLY)
    recorder.start("workers-succeeded", ended("Complete"), command=finish, pod=_SLOW_POD, workers=2)
    recorder.start("workers-finishing", ended("SuccessCriteriaMet"), command=finish, pod=_SLOW_POD, workers=2)


def start_worker_stops(recorder: Recorder) -> None:
    """Cases that are made by an eviction, or by suspending."""
    slow = {"command": each_worker(_UNTIL_TOLD, _STOP_SLOWLY), "pod": _SLOW_POD, "workers": 2}
    quick = slow | {"command": each_worker(_UNTIL_TOLD, _GO_ON)}
    cases: dict[str, tuple[Any, Until]] = {
        "workers-evicting": (slow, lambda job, pods, events: states(pods) == _BOTH and terminates(job, pods, events)),
        "workers-evicted": (quick, lambda job, pods, events: states(pods).get("0") == ["terminated"]),
        "workers-evicted-and-back": (quick, workers_are(["terminated", "running"], ["running"])),
        "workers-suspending": (slow, terminates),
    }
    cases = {name: case for name, case in cases.items() if recorder.wants(name)}
    for name, (changes, _) in cases.items():
        recorder.start(name, runs, **changes)
        recorder.waiting.pop(name)
    for name in cases:
        pods = recorder.wait_for(name, lambda job, pods, events: states(pods) == _BOTH)
        chief, other = sorted(pod["metadata"]["name"] for pod in pods)
        if name == "workers-suspending":
            recorder.ns.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"suspend": true}}')
            continue
        recorder.evict(other)
        if name != "workers-evicting":
            recorder.ns.kubectl("exec", chief, "--", "touch", "/tmp/told")
    recorder.waiting |= {name: until for name, (_, until) in cases.items()}


_BOTH = {"0": ["running"], "1": ["running"]}


@contextmanager
def privileged_namespace(mode: str = "privileged") -> Iterator[Any]:
    """A namespace in which busybox may run as it likes, unless another `mode` is given."""
    with made_namespace(f"record-{uuid.uuid4().hex[:6]}", {}) as namespace:
        label = f"pod-security.kubernetes.io/enforce={mode}"
        run_command("kubectl", "label", "namespace", namespace.name, label, "--overwrite")
        try:
            yield namespace
        finally:
            # Else the namespace never goes: with backoffLimitPerIndex a pod's finalizer waits for the next pod of its index.
            namespace.kubectl("delete", "jobs", "--all", "--wait=false")


def record_pending(patterns: list[str]) -> None:
    """One pod takes more than half of what the node has left. The scheduler chooses which: tried until that is the chief."""
    name = "workers-pending"
    if not is_wanted(name, patterns):
        return
    with privileged_namespace() as namespace:
        recorder = Recorder(namespace, patterns)
        for _ in range(10):
            much = {"resources": {"requests": {"cpu": "600m"}}}
            recorder.start(name, lambda *found: runs(*found) and unscheduled(*found), **_WAITS, container=much)
            pods = recorder.wait_for(name, recorder.waiting[name])
            if any(state(pod).get("running") and is_chief(pod) for pod in pods):
                break
            namespace.kubectl("delete", "job", name, "--cascade=foreground", "--wait", "--grace-period=1")
        recorder.collect()


_WAITS: Object = {"command": _GO_ON, "workers": 2}


def record_refused(
    patterns: list[str], kind: str, *manifests: Object, until: Until | None = None, **changes: Any
) -> None:
    if not is_wanted(kind, patterns):
        return
    with privileged_namespace("restricted" if kind == "pod-security" else "privileged") as namespace:
        recorder = Recorder(namespace, patterns)
        if manifests:
            namespace.apply(*manifests)
        recorder.start(kind, until or told("FailedCreate"), **changes)
        recorder.collect()


def record_most(patterns: list[str]) -> None:
    with privileged_namespace() as namespace:
        recorder = Recorder(namespace, patterns)
        start_ends(recorder)
        start_waits(recorder)
        start_workers(recorder)
        recorder.collect()
        start_stops(recorder)
        start_worker_stops(recorder)
        recorder.collect()


def quota_of(name: str, **hard: str) -> Object:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    patterns = sys.argv[1:] or ["*"]
    record_most(patterns)
    record_refused(patterns, "quota", quota_of("few", pods="0"))
    limits = [{"type": "Container", "max": {"cpu": "100m"}, "default": {"cpu": "50m"}}]
    limit = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}}
    large = {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}
    record_refused(patterns, "limit-range", limit, container=large)
    record_refused(patterns, "pod-security", container={"securityContext": {"privileged": True}})

    def one_runs(job: Object, pods: list[Object], events: list[Object]) -> bool:
        return runs(job, pods, events) and told("FailedCreate")(job, pods, events)

    record_refused(patterns, "workers-quota", quota_of("one", pods="1"), until=one_runs, **_WAITS)
    record_pending(patterns)


if __name__ == "__main__":
    main()
