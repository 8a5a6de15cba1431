"""A namespace of a real cluster, through kubectl and helm as people use them. Every wait has a deadline."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import REPOSITORY

CHART = REPOSITORY / "charts" / "mnist-train"
POLL_SECONDS = 1.0

Object = dict[str, Any]
T = TypeVar("T")


def run_command(*command: str, stdin: str | None = None, timeout: float = 120) -> str:
    """Run a tool and return its stdout; its stderr is in the error when it fails."""
    executable = shutil.which(command[0])
    assert executable, f"{command[0]} is not on PATH"
    done = subprocess.run(
        [executable, *command[1:]], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one container of a pod ended."""

    pod: str
    code: int
    reason: str
    message: Object
    """The termination message."""


@dataclass(slots=True, kw_only=True)
class Namespace:
    """A namespace that enforces the restricted Pod Security standard, and the releases in it."""

    name: str
    values: Object = field(default_factory=dict)
    """Under the values of every release."""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        return run_command("kubectl", "--namespace", self.name, *arguments, stdin=stdin, timeout=timeout)

    def get(self, kind: str, *arguments: str) -> list[Object]:
        items: list[Object] = json.loads(self.kubectl("get", kind, "-o", "json", *arguments))["items"]
        return items

    def apply(self, *manifests: Object) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def helm(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        return run_command("helm", "--namespace", self.name, *arguments, stdin=stdin, timeout=timeout)

    def install(self, release: str, *values: Object, flags: tuple[str, ...] = (), chart: Path = CHART) -> str:
        """Install or upgrade a release; returns the name of its Job, or nothing for a schedule."""
        merged = self.values
        for more in values:
            merged = _merge(merged, more)
        if merged.get("store", {}).get("uri") and not merged.get("persistence", {}).get("cache"):
            merged.pop("persistence", None)  # of a PVC that such a release has not
        self.helm("upgrade", "--install", release, str(chart), "-f", "-", *flags, stdin=json.dumps(merged))
        runs = f"app.kubernetes.io/instance={release},app.kubernetes.io/name=mnist-train"
        jobs = [job["metadata"]["name"] for job in self.get("job", "-l", runs)]
        manifest = self.helm("get", "manifest", release)
        return next((name for name in jobs if f'name: "{name}"\n' in manifest), "")

    def job(self, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", "job", name, "-o", "json"))
        return found

    def pods(self, job: str) -> list[Object]:
        pods = self.get("pod", "-l", f"batch.kubernetes.io/job-name={job}")
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def logs(self, pod: str) -> str:
        return self.kubectl("logs", pod)

    @contextmanager
    def following(self, pod: str) -> Iterator[list[Object]]:
        """The job's log events of a pod that is about to go: the list is filled when the pod has ended."""
        events: list[Object] = []
        command = [shutil.which("kubectl") or "kubectl", "--namespace", self.name, "logs", "--follow", pod]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield events
                output, _ = process.communicate(timeout=90)
                events += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            finally:
                process.kill()

    def events_of(self, pod: str) -> list[Object]:
        """The job's own log events of a pod."""
        return [json.loads(line) for line in self.logs(pod).splitlines() if line.startswith("{")]

    def wait_for_end(self, job: str, *, seconds: float = 240) -> str:
        """`Complete`, or the reason why the Job failed."""

        def outcome() -> str:
            for condition in self.job(job).get("status", {}).get("conditions", []):
                if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                    return str(condition["type"] if condition["type"] == "Complete" else condition["reason"])
            return ""

        return wait_until(outcome, f"end of job {job}", seconds=seconds)

    def wait_for_training(self, job: str, *, seconds: float = 180, other_than: str = "") -> str:
        """Wait until a pod of the Job has saved a checkpoint and trains on; returns its name."""

        def training() -> str:
            for pod in self.pods(job):
                name = str(pod["metadata"]["name"])
                is_running = pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
                if is_running and name != other_than and '"checkpoint.saved"' in self.logs(name):
                    return name
            return ""

        return wait_until(training, f"training of job {job}", seconds=seconds)

    def ended(self, job: str) -> list[Ended]:
        """How the Job's pods ended, oldest first; only those that are still there."""
        found = []
        for pod in self.pods(job):
            for status in pod["status"].get("containerStatuses", []):
                state = status["state"].get("terminated")
                if state:
                    message = json.loads(state["message"]) if state.get("message", "").startswith("{") else {}
                    found.append(
                        Ended(
                            pod=pod["metadata"]["name"],
                            code=state["exitCode"],
                            reason=state.get("reason", ""),
                            message=message,
                        )
                    )
        return found

    def commit(self, job: str) -> Object:
        """The commit.done event of the Job's last pod."""
        events = self.events_of(self.pods(job)[-1]["metadata"]["name"])
        return next(event for event in events if event["event"] == "commit.done")

    def diagnose(self) -> str:
        """What a person would look at first."""
        parts = []
        for command in (
            ("get", "all,pvc", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("describe", "job"),
            ("describe", "pod"),
            ("logs", "--selector=app.kubernetes.io/name=mnist-train", "--tail=20", "--prefix"),
        ):
            try:
                parts.append(f"$ kubectl {' '.join(command)}\n{self.kubectl(*command)}")
            except (AssertionError, subprocess.TimeoutExpired) as error:
                parts.append(f"$ kubectl {' '.join(command)}\n{error}")
        return "\n".join(parts)


def wait_until(condition: Callable[[], T], what: str, *, seconds: float) -> T:
    """Poll until the condition holds; returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(POLL_SECONDS)


@contextmanager
def made_namespace(name: str, values: Object, *, enforced: str = "restricted") -> Iterator[Namespace]:
    """A fresh namespace with that Pod Security standard, deleted at the end."""
    labels = {f"pod-security.kubernetes.io/{mode}": enforced for mode in ("enforce", "warn")}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    run_command("kubectl", "create", "-f", "-", stdin=json.dumps(manifest))
    try:
        yield Namespace(name=name, values=values)
    finally:
        # A namespace deletes pods before Jobs, and pods of a Job with several workers wait for their Job.
        run_command("kubectl", "-n", name, "delete", "jobs", "--all", "--wait=false")
        run_command("kubectl", "delete", "namespace", name, "--wait=false")


def _merge(below: Object, above: Object) -> Object:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
