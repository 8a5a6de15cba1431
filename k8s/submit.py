"""Jobs made from the CronJob of a release: never a pod of our own making.

`build_*` are pure functions from a CronJob to a Job; `create_job` sends one, so that a lost reply never makes a second Job.
"""

import copy
import hashlib
import json
import logging
import re
import secrets
import time
import uuid
from collections.abc import Sequence

from job.contract import ORIGIN_MANUAL, ORIGIN_SCHEDULE, ORIGIN_VARIABLE, is_run_id
from job.errors import ConfigError
from job.texts import quoted
from k8s.api import Api
from k8s.errors import ConflictError, NotFoundError, ThrottledError, UnavailableError, UsageError
from k8s.runs import (
    REQUEST_ANNOTATION,
    RUN_ANNOTATION,
    SETTINGS_ANNOTATION,
    arguments_of,
    container_of,
    expand,
    run_id_of,
)
from k8s.schedules import NEVER
from k8s.shapes import Object
from k8s.workers import num_workers

_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # as Kubernetes' own suffixes: no vowels, no words
_NAME_CHARACTERS = 10  # 2e14 names, and a name that is taken is found out by its request id
_MAX_NAME_CHARACTERS = 63
_GPUS = re.compile(r"nvidia\.com/(gpu|mig-[^/]+)|amd\.com/gpu|gpu\.intel\.com/(i915|xe)")
"""The limits that are GPUs; the chart knows the same names (`mnist-train.gpus` in templates/_run.tpl)."""
_MANAGED_BY, _CLIENT = "app.kubernetes.io/managed-by", "mnist-k8s"
_GRACE_ABOVE_FINAL_SAVE_SECONDS = 10

_log = logging.getLogger("k8s")


def build_job(
    cronjob: Object, *, name: str, overrides: Sequence[str] = (), run_id: str = "", promote: bool = False
) -> Object:
    """The Job of a run with its own settings.

    Args:
        overrides: `section.field=value`, on top of those of the release.
        run_id: of an older run that is to go on; else the Job's name makes one.
        promote: let the release's own `promotion.enabled` stand.

    Raises:
        UsageError: a setting that the job would refuse, or that its pod does not allow.
    """
    added = [f"--{override}" for override in overrides]
    if run_id:
        added.append(f"--run.id={run_id}")
    if not promote and not any(override.startswith("promotion.enabled=") for override in overrides):
        added.append("--promotion.enabled=false")
    job = _from_template(cronjob, name=name, settings=", ".join(overrides))
    _append_arguments(job, added)
    _set_origin(job, ORIGIN_MANUAL)
    _check(job, cronjob)
    job["metadata"]["annotations"][RUN_ANNOTATION] = run_id_of(job)
    return job


def build_resumed_job(cronjob: Object, old: Object, *, name: str, overrides: Sequence[str] = ()) -> Object:
    """A new Job for an old run: its settings, in a pod as the release describes it today.

    Raises:
        UsageError: as from `build_job`.
    """
    run_id = run_id_of(old)
    arguments = [*arguments_of(old), *(f"--{override}" for override in overrides), f"--run.id={run_id}"]
    before = (old["metadata"].get("annotations") or {}).get(SETTINGS_ANNOTATION, "")
    job = _from_template(cronjob, name=name, settings=", ".join(filter(None, (before, *overrides))))
    container_of(job["spec"]["template"]["spec"])["args"] = arguments[:1]
    _append_arguments(job, arguments[1:])
    _set_origin(job, _origin_of(old))
    _check(job, cronjob)
    job["metadata"]["annotations"][RUN_ANNOTATION] = run_id
    return job


def build_triggered_job(cronjob: Object, *, name: str) -> Object:
    """What the schedule would start at its next time; it counts as a run of the schedule.

    Raises:
        UsageError: the release has no schedule.
    """
    if cronjob["spec"].get("schedule") == NEVER:
        raise UsageError(
            f"release {cronjob['metadata']['name']} has no schedule to trigger; use mnist-k8s submit, "
            "or helm upgrade --reset-then-reuse-values --set schedule=..."
        )
    job = _from_template(cronjob, name=name, settings="")
    job["metadata"]["annotations"][RUN_ANNOTATION] = run_id_of(job)
    return job


def make_name(cronjob: Object) -> str:
    """A Job name that was never used before, chosen here so that it can be asked for when a reply is lost."""
    return _name(cronjob, secrets.randbits(256))


def make_name_of_resumed(cronjob: Object, *, run: str, last_job: str) -> str:
    """The same name for all who resume a run after the same Job: of two at once only one can make it.

    Args:
        run: its id, or the name of its Job.
        last_job: UID of the newest Job of that run; empty when none is there any more.
    """
    return _name(cronjob, int.from_bytes(hashlib.sha256((last_job or run).encode()).digest(), "big"))


def _name(cronjob: Object, number: int) -> str:
    suffix = ""
    for _ in range(_NAME_CHARACTERS):
        number, index = divmod(number, len(_NAME_ALPHABET))
        suffix += _NAME_ALPHABET[index]
    longest = _max_name_characters(cronjob["spec"]["jobTemplate"])
    base = cronjob["metadata"]["name"][: longest - _NAME_CHARACTERS - 1].rstrip("-.")
    return f"{base}-{suffix}"


def _max_name_characters(template: Object) -> int:
    """How long a Job's name may be: the host name of each of several workers is the Job's name, '-' and its index."""
    workers = num_workers(template)
    return _MAX_NAME_CHARACTERS - (len(f"-{workers - 1}") if workers > 1 else 0)


def create_job(api: Api, job: Object, *, patience_seconds: float = 60.0) -> Object:
    """Create it exactly once, whatever happens to replies; returns the Job as it is in the cluster.

    Raises:
        ConflictError: another one has its name.
        UnavailableError: for so long no reply says whether it was made; the message names it.
    """
    name, request = job["metadata"]["name"], job["metadata"]["annotations"][REQUEST_ANNOTATION]
    deadline, pause = time.monotonic() + patience_seconds, 0.2
    while True:
        try:
            return api.create_once("jobs", job)
        except ConflictError as error:
            there = _read_back(api, name)
            if there and (there["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION) == request:
                return there  # by a try whose reply was lost
            if there:
                raise ConflictError(f"the Job {name} exists, and is another one; choose another --name") from error
            last: Exception = error
        except UnavailableError as error:  # made, or not: the next try answers 409 if it was
            last = error
            if isinstance(error, ThrottledError):
                pause = max(pause, error.retry_after_seconds)
        if time.monotonic() + pause > deadline:
            raise UnavailableError(
                f"{last}; whether the Job {name} was made is not known: mnist-k8s status {quoted(name)}"
            ) from last
        _log.warning("%s; asking again for the same Job %s", last, name)
        time.sleep(pause)
        pause = min(5.0, pause * 2)


def _read_back(api: Api, name: str) -> Object | None:
    try:
        return api.get("jobs", name)
    except NotFoundError:
        return None


def _from_template(cronjob: Object, *, name: str, settings: str) -> Object:
    template = copy.deepcopy(cronjob["spec"]["jobTemplate"])
    metadata = template.get("metadata") or {}
    longest = _max_name_characters(template)
    if len(name) > longest or not is_run_id(name) or "." in name:
        raise UsageError(f"--name: must be lower-case letters, digits and '-', at most {longest}, received {name!r}")
    annotations = {
        **(metadata.get("annotations") or {}),
        REQUEST_ANNOTATION: str(uuid.uuid4()),
        "cronjob.kubernetes.io/instantiate": "manual",
    }
    if settings:
        annotations[SETTINGS_ANNOTATION] = settings
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": cronjob["metadata"]["namespace"],
            "labels": {**(metadata.get("labels") or {}), _MANAGED_BY: _CLIENT},
            "annotations": annotations,
            # controller: false, or the history limits of the CronJob would delete it.
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "CronJob",
                    "name": cronjob["metadata"]["name"],
                    "uid": cronjob["metadata"]["uid"],
                    "controller": False,
                }
            ],
        },
        "spec": template["spec"],
    }


def _append_arguments(job: Object, arguments: Sequence[str]) -> None:
    container = container_of(job["spec"]["template"]["spec"])
    container["args"] = [*(container.get("args") or []), *(argument.replace("$", "$$") for argument in arguments)]


def _set_origin(job: Object, origin: str) -> None:
    """Say in which group of a Pushgateway the run tells how it ended: one by hand must not stand for the schedule's."""
    container = container_of(job["spec"]["template"]["spec"])
    others = [variable for variable in container.get("env") or [] if variable["name"] != ORIGIN_VARIABLE]
    container["env"] = [*others, {"name": ORIGIN_VARIABLE, "value": origin}]


def _origin_of(job: Object) -> str:
    """What the Job says; one of an older release or client says nothing, and is then told by who made it."""
    for variable in container_of(job["spec"]["template"]["spec"]).get("env") or []:
        if variable["name"] == ORIGIN_VARIABLE:
            return str(variable.get("value", ORIGIN_MANUAL))
    labels = job["metadata"].get("labels") or {}
    return ORIGIN_MANUAL if labels.get(_MANAGED_BY) == _CLIENT else ORIGIN_SCHEDULE


def _check(job: Object, cronjob: Object) -> None:
    """Everything that the job would refuse at its start, and what only its pod can know."""
    from job.config_sources import check_flags

    pod_spec = job["spec"]["template"]["spec"]
    arguments = arguments_of(job)
    if arguments[:1] != ["run"]:
        raise UsageError(
            f"CronJob {cronjob['metadata']['name']}: is no template of mnist-job run, received {arguments[:1]}"
        )
    try:
        config = check_flags(arguments[1:])
    except ConfigError as error:
        raise UsageError(str(error)) from error
    _check_workers(config.cluster.workers, job)
    given = expand(container_of(cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"])["args"], job_name="x")
    if config.store.uri.startswith("file:") and f"--store.uri={config.store.uri}" not in given:
        raise UsageError(
            f"store.uri: must not be a folder inside the pod, which is gone with it, received {config.store.uri}; "
            "name s3://, gs:// or az://"
        )
    grace = pod_spec.get("terminationGracePeriodSeconds", 30)
    needed = config.checkpoint.final_save_seconds + _GRACE_ABOVE_FINAL_SAVE_SECONDS
    if grace < needed:
        raise UsageError(
            f"checkpoint.final_save_seconds: must be at least {_GRACE_ABOVE_FINAL_SAVE_SECONDS} s less than the release's "
            f"terminationGracePeriodSeconds ({grace}), received {json.dumps(config.checkpoint.final_save_seconds)}"
        )
    limits = (container_of(pod_spec).get("resources") or {}).get("limits", {})
    for name in filter(_GPUS.fullmatch, limits):
        if int(limits[name]) not in (0, config.cluster.expected_gpus):
            raise UsageError(
                f"cluster.expected_gpus: must equal the limit {name} ({limits[name]}) of the release; leave it out"
            )


def _check_workers(wanted: int, job: Object) -> None:
    """The pods are the chart's, with the addresses of all of them: a setting alone makes no more and no fewer."""
    made = num_workers(job)
    if wanted != made:
        raise UsageError(
            f"cluster.workers: must equal the number of workers of the release ({made}), received {wanted}; use "
            f"helm upgrade --reset-then-reuse-values --set cluster.workers={wanted}: the chart makes the workers' addresses"
        )
