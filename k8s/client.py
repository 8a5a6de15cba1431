"""`RunClient`: what a person does with the runs of a release. Runs are Jobs, found by label.

A verdict comes from a list, never from a watch; every wait has a deadline.
"""

import contextlib
import difflib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Self

from job.contract import is_run_id
from job.texts import quoted, visible
from k8s import submit
from k8s.api import Api
from k8s.causes import container_state, find_condition, has_ended
from k8s.errors import ClientError, ConflictError, NotFoundError, NotStartedError, UsageError
from k8s.logs import LogLine, Notice, has_log, read_log, where_else
from k8s.progress import last_log_events
from k8s.runs import JOB_NAME_LABEL, created_pod_names, label_selector, release_of, run_id_of
from k8s.schedules import explain_schedule
from k8s.shapes import Object
from k8s.status import RunStatus, is_settled, judge
from k8s.watch import wait_for
from k8s.workers import Worker, index_of, num_workers, workers_of

DAY_SECONDS = 86_400.0
_MAX_EVENT_REQUESTS = 8
"""Of more objects than that, as of many workers, the events are asked for at once."""
_CANCEL_MARGIN_SECONDS = 60.0
"""Above the grace period: for the kubelet to see the end, and the Job controller to count it."""


class RunClient:
    """The runs of one namespace, or of one release in it."""

    def __init__(self, api: Api, *, release: str = "") -> None:
        self._api = api
        self._release = release

    @classmethod
    def connect(cls, *, kubeconfig: str = "", context: str = "", namespace: str = "", release: str = "") -> Self:
        """A client for the cluster and namespace that kubectl would use.

        Raises:
            UsageError: no cluster is configured.
        """
        from k8s.connection import connect

        return cls(Api(connect(kubeconfig=kubeconfig, context=context, namespace=namespace)), release=release)

    @property
    def namespace(self) -> str:
        """Where it looks."""
        return self._api.namespace

    def submit(
        self, settings: Sequence[str] = (), *, promote: bool = False, run_id: str = "", name: str = ""
    ) -> RunStatus:
        """Start a run with its own settings (`section.field=value`) from the release's template.

        Raises:
            UsageError: a setting that the job would refuse; nothing was sent.
            ForbiddenError: RBAC, or a quota of Jobs.
        """
        cronjob = self._find_template()
        job = submit.build_job(
            cronjob, name=name or submit.make_name(cronjob), overrides=settings, run_id=run_id, promote=promote
        )
        return self._judge(submit.create_job(self._api, job))

    def trigger(self, *, name: str = "") -> RunStatus:
        """Start what the schedule would start next, now.

        Raises:
            UsageError: the release has no schedule.
            ConflictError: one of its runs goes on, and the schedule forbids a second.
        """
        cronjob = self._find_template()
        job = submit.build_triggered_job(cronjob, name=name or submit.make_name(cronjob))
        active = cronjob.get("status", {}).get("active") or []
        if active and cronjob["spec"].get("concurrencyPolicy") == "Forbid":
            raise ConflictError(
                f"the schedule's Job {active[0].get('name')} goes on, and concurrencyPolicy is Forbid; wait for it or cancel it"
            )
        return self._judge(submit.create_job(self._api, job))

    def resume(self, run: str, settings: Sequence[str] = (), *, name: str = "") -> RunStatus:
        """A new Job for an old run, which goes on from its last checkpoint.

        Its settings are those of its last Job, where that is still there; else the release's and `settings`.

        Raises:
            ConflictError: the run goes on, or has succeeded.
            NotFoundError: no Job is known, and the name can be no run's.
        """
        cronjob = self._find_template()
        jobs = self._jobs_of(run)
        last = jobs[-1]["metadata"]["uid"] if jobs else ""
        chosen = name or submit.make_name_of_resumed(cronjob, run=run, last_job=last)
        for job in jobs:
            status = self._judge(job)
            if status.phase != "Failed":
                what = "has succeeded" if status.phase == "Succeeded" else f"goes on ({status.phase})"
                raise ConflictError(f"run {status.run} {what} in the Job {status.job}; there is nothing to resume")
        if jobs:
            resumed = submit.build_resumed_job(cronjob, jobs[-1], name=chosen, overrides=settings)
        elif is_run_id(run) and "." in run:
            resumed = submit.build_job(cronjob, name=chosen, overrides=settings, run_id=run)
        else:
            raise self._not_found(run)
        try:
            return self._judge(submit.create_job(self._api, resumed))
        except ConflictError as error:
            if name:
                raise
            raise ConflictError(
                f"run {run_id_of(resumed)} was resumed by somebody else just now, in the Job {chosen}; follow it with "
                f"mnist-k8s logs -f {quoted(chosen)}"
            ) from error

    def list_runs(self) -> list[RunStatus]:
        """All runs whose Job is there, oldest first."""
        jobs, _ = self._api.list("jobs", labels=label_selector(self._release))
        pods, _ = self._api.list("pods", labels=label_selector(self._release))
        events, _ = self._api.list("events")
        of_job, told = defaultdict[str, list[Object]](list), defaultdict[str, list[Object]](list)
        for pod in pods:
            of_job[(pod["metadata"].get("labels") or {}).get(JOB_NAME_LABEL, "")].append(pod)
        for event in events:
            told[event.get("involvedObject", {}).get("name", "")].append(event)
        found = []
        for job in _sorted(jobs):
            name = job["metadata"]["name"]
            about = [event for each in _told_of(job, of_job[name], told[name]) for event in told[each]]
            found.append(self._judge(job, pods=of_job[name], events=about))
        return found

    def explain_schedules(self) -> list[str]:
        """What holds the schedules back, a line each; those whose newest slot has started a run are left out."""
        cronjobs, _ = self._api.list("cronjobs", labels=label_selector(self._release))
        told = [explain_schedule(each, self._events_of(each["metadata"]["name"])) for each in cronjobs]
        return [line for line in told if line]

    def status(self, run: str) -> RunStatus:
        """One run, by its id or the name of its Job.

        Raises:
            NotFoundError: there is no such Job.
        """
        return self._judge(self._find_job(run))

    def wait(self, run: str, *, timeout_seconds: float = DAY_SECONDS) -> RunStatus:
        """Wait until the run has succeeded or failed; returns how.

        Raises:
            DeadlineError: it has not by then.
            NotFoundError: its Job is not there, or was deleted meanwhile.
        """
        job = self._find_job(run)
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]

        def look(jobs: list[Object]) -> Object | None:
            there = next((each for each in jobs if each["metadata"]["uid"] == uid), None)
            if there is None:
                raise NotFoundError(
                    f"the Job {name} was deleted while it was waited for; mnist-k8s resume {quoted(run_id_of(job))}"
                )
            return there if is_settled(there) else None

        deadline = time.monotonic() + timeout_seconds
        fields = f"metadata.name={name}"
        return self._judge(
            wait_for(
                self._api, look, resource="jobs", fields=fields, what=f"end of run {run_id_of(job)}", deadline=deadline
            )
        )

    def cancel(self, run: str, *, timeout_seconds: float | None = None) -> RunStatus:
        """Stop a run: its pod saves a checkpoint and ends, then the Job is deleted. A run that has ended is left as it is.

        Raises:
            DeadlineError: the pod did not end in its grace period; the Job stays suspended.
        """
        job = self._find_job(run)
        if is_settled(job):
            return self._judge(job)
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        # Suspended, not deleted at once: the Job's end is seen, so that no pod still writes when this returns.
        self._api.patch("jobs", name, {"metadata": {"uid": uid}, "spec": {"suspend": True}})
        grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        seconds = grace + _CANCEL_MARGIN_SECONDS if timeout_seconds is None else timeout_seconds
        stopped = wait_for(
            self._api,
            lambda pods: self._stopped(name, pods),
            resource="pods",
            labels=f"{JOB_NAME_LABEL}={name}",
            what=f"end of the pods of {name}, which stays suspended",
            deadline=time.monotonic() + seconds,
        )
        status = self._judge(stopped)
        if not status.is_finished:
            with contextlib.suppress(NotFoundError):  # by a try whose reply was lost, or by somebody else
                self._api.delete("jobs", name, uid=uid)
        return status

    def _stopped(self, name: str, pods: list[Object]) -> Object | None:
        """The Job, once it has ended or nothing of it runs and nothing will."""
        job = self._api.get("jobs", name)
        is_still = find_condition(job, "Suspended") is not None and all(has_ended(pod) for pod in pods)
        return job if is_still or is_settled(job) else None

    def logs(
        self, run: str, *, worker: int = 0, follow: bool = False, timeout_seconds: float = DAY_SECONDS
    ) -> Iterator[LogLine | Notice]:
        """The log of a worker's pods that are still there, oldest first; `follow` waits for more until the run has ended.

        Raises:
            UsageError: the run has no such worker.
            NotFoundError: there is no such Job.
            NotStartedError: no pod of the worker has a log yet, and `follow` was not asked for.
            DeadlineError: it was followed for so long.
        """
        job = self._find_job(run)
        total = num_workers(job)
        if not 0 <= worker < total:
            allowed = f"0 to {total - 1}" if total > 1 else "0, its only worker"
            raise UsageError(f"--worker: of run {run_id_of(job)} must be {allowed}, received {worker}")
        pods, events = self._pods_of(job), self._events_of(job["metadata"]["name"])
        this = workers_of(job, pods, events)[worker]
        num_gone = this.attempts - len(this.pods)
        if num_gone > 0:
            stored = where_else("their log", job, worker=worker)
            yield Notice(text=f"{num_gone} earlier pods are gone (evicted or deleted); {stored}")
        if not follow and not any(has_log(pod) for pod in this.pods):
            self._require_started(this)
        yield from read_log(self._api, job, worker=worker, follow=follow, timeout_seconds=timeout_seconds)

    def _require_started(self, worker: Worker) -> None:
        """Refuse to show a log that is still to come, with the reason that `status` shows."""
        run, pod = self._judge(worker.job, pods=worker.all_pods), worker.active
        told = run.workers[worker.index] if run.workers and run.phase != "Suspended" else run
        if run.is_finished or not (pod or told.phase in ("Pending", "Retrying", "Suspended")):
            return
        index = worker.index
        whose, option = (f"worker {index} of {run.run}", f"--worker {index} ") if index else (run.run, "")
        what = f"pod {pod['metadata']['name']} has not started" if pod else "no pod has started"
        why = "; ".join(filter(None, (f"{told.reason}: {told.message}", told.action)))
        wait = f"to wait for it: mnist-k8s logs -f {option}{quoted(run.run)}"
        raise NotStartedError(f"the log of {whose}: {what}: {why}; {wait}")

    def _judge(self, job: Object, *, pods: list[Object] | None = None, events: list[Object] | None = None) -> RunStatus:
        """The status of a Job; its pods, and the events of both, are asked for where they are not at hand."""
        found = self._pods_of(job) if pods is None else pods
        told = self._events_about(job, found) if events is None else events
        running = next((pod for pod in found if index_of(pod) == 0 and container_state(pod).get("running")), None)
        log = last_log_events(self._api, running) if running and not is_settled(job) else []
        return judge(job, found, events=told, log=log)

    def _pods_of(self, job: Object) -> list[Object]:
        return self._api.list("pods", labels=f"{JOB_NAME_LABEL}={job['metadata']['name']}")[0]

    def _events_about(self, job: Object, pods: list[Object]) -> list[Object]:
        """Of a Job and its pods, of which some may be gone."""
        name = job["metadata"]["name"]
        told = self._events_of(name, *_names(pods))
        gone = [each for each in _told_of(job, pods, told) if each not in (name, *_names(pods))]
        return told + self._events_of(*gone)

    def _events_of(self, *names: str) -> list[Object]:
        if len(names) > _MAX_EVENT_REQUESTS:
            return [
                event for event in self._api.list("events")[0] if event.get("involvedObject", {}).get("name") in names
            ]
        return [event for name in names for event in self._api.list("events", fields=f"involvedObject.name={name}")[0]]

    def _find_job(self, run: str) -> Object:
        jobs = self._jobs_of(run)
        if not jobs:
            raise self._not_found(run)
        return jobs[-1]

    def _jobs_of(self, run: str) -> list[Object]:
        """The Jobs that work on a run, oldest first; also by the name of one."""
        jobs, _ = self._api.list("jobs", labels=label_selector(self._release))
        return _sorted([job for job in jobs if run in (job["metadata"]["name"], run_id_of(job))])

    def _not_found(self, run: str) -> ClientError:
        jobs, _ = self._api.list("jobs", labels=label_selector(self._release))
        known = [name for job in jobs for name in (run_id_of(job), job["metadata"]["name"])]
        near = difflib.get_close_matches(run, known, n=1)
        hint = f"did you mean {quoted(near[0])}?" if near else "mnist-k8s list shows all."
        return NotFoundError(
            f"run {visible(run)}: no Job of it in namespace {self.namespace}; {hint} What it stored: mnist-job logs {quoted(run)}"
        )

    def _find_template(self) -> Object:
        """The CronJob of the release, which is there with a schedule and without."""
        cronjobs, _ = self._api.list("cronjobs", labels=label_selector(self._release))
        if len(cronjobs) == 1:
            return cronjobs[0]
        if not cronjobs:
            what = f"release {self._release}" if self._release else "any release of the chart mnist-train"
            raise NotFoundError(
                f"no CronJob of {what} in namespace {self.namespace}; helm install one, or name another --namespace or --release"
            )
        releases = ", ".join(sorted({release_of(cronjob) for cronjob in cronjobs}))
        raise UsageError(f"--release: must name one of the releases in namespace {self.namespace}: {releases}")


def _told_of(job: Object, pods: list[Object], events: list[Object]) -> list[str]:
    """The names under which events tell of a Job: its own, and those of its pods, which may be gone."""
    name = job["metadata"]["name"]
    return list(dict.fromkeys([name, *_names(pods), *sorted(created_pod_names(events, job=name))]))


def _names(pods: list[Object]) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods]


def _sorted(jobs: list[Object]) -> list[Object]:
    return sorted(jobs, key=lambda job: (job["metadata"].get("creationTimestamp", ""), job["metadata"]["name"]))
