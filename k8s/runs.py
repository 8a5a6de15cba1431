"""Which run a Job works on, of which release, with which settings: read from its labels, annotations and arguments."""

import re
from typing import Any

from k8s.causes import CONTAINER
from k8s.shapes import Object, parse_count

NAME_LABEL = "app.kubernetes.io/name"
RELEASE_LABEL = "app.kubernetes.io/instance"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
CHART = "mnist-train"

RUN_ANNOTATION = "mnist-train/run"
SETTINGS_ANNOTATION = "mnist-train/set"
REQUEST_ANNOTATION = "mnist-train/request"

_RUN_ID_FLAG = "--run.id="
_EPOCHS_FLAG = "--train.epochs="
_PROMOTION_FLAG = "--promotion.enabled="
_CREATED_POD = re.compile(r"^Created pod: (\S+)$")


def label_selector(release: str = "") -> str:
    """Selects the Jobs and pods of one release, or of all."""
    return f"{NAME_LABEL}={CHART}" + (f",{RELEASE_LABEL}={release}" if release else "")


def arguments_of(job: Object) -> list[str]:
    """The arguments of the job's container, as the pod gets them."""
    return expand(container_of(job["spec"]["template"]["spec"]).get("args") or [], job_name=job["metadata"]["name"])


def container_of(pod_spec: Object) -> Object:
    """The container that trains."""
    containers: list[Object] = pod_spec.get("containers") or [{}]
    return next((each for each in containers if each.get("name") == CONTAINER), containers[0])


def expand(arguments: list[str], *, job_name: str) -> list[str]:
    """What Kubernetes makes of them: $(JOB_NAME) is the Job's name, $$ is a dollar."""
    return [
        re.sub(r"\$\$|\$\(JOB_NAME\)", lambda match: "$" if match[0] == "$$" else job_name, argument)
        for argument in arguments
    ]


def run_id_of(job: Object) -> str:
    """The id of the run, as the job itself will read it: the last of several flags wins."""
    given = _given(job, _RUN_ID_FLAG)
    annotations: dict[str, Any] = job["metadata"].get("annotations") or {}
    return str(annotations.get(RUN_ANNOTATION, "")) if given is None else given


def _given(job: Object, flag: str) -> str | None:
    """What the last of several flags says, such as `--run.id=`; None without one."""
    given = [argument for argument in arguments_of(job) if argument.startswith(flag)]
    return given[-1].removeprefix(flag) if given else None


def epochs_of(job: Object) -> int:
    """How many epochs it trains."""
    from job.config import TrainSection

    given = _given(job, _EPOCHS_FLAG)
    count = None if given is None else parse_count(given)
    default: int = TrainSection.model_fields["epochs"].default
    return default if count is None else count


def may_promote(job: Object) -> bool:
    """Whether its settings let the run become the champion."""
    return (_given(job, _PROMOTION_FLAG) or "true").lower() not in ("false", "f", "no", "n", "off", "0")


def overrides_of(job: Object) -> str:
    """What was changed for this run alone."""
    return str((job["metadata"].get("annotations") or {}).get(SETTINGS_ANNOTATION, ""))


def release_of(thing: Object) -> str:
    """The Helm release that it belongs to."""
    return str((thing["metadata"].get("labels") or {}).get(RELEASE_LABEL, ""))


def created_pod_names(events: list[Object], *, job: str) -> set[str]:
    """Names of the pods that the Job controller says it has made."""
    about = [event for event in events if event.get("involvedObject", {}).get("name") == job]
    matches = [_CREATED_POD.match(str(event.get("message", ""))) for event in about]
    return {match[1] for match in matches if match}
