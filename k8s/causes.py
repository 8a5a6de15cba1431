"""Why a pod does not start, or was not made: the words of Kubernetes, with what to do; and what all such judgements read.

Pure functions over the objects of the API server. `ends.py` has the ends; `status.py` decides which of them counts.
"""

import re
from dataclasses import dataclass

from job import texts
from job.contract import ExitCode
from k8s.shapes import Object, parse_message

CONTAINER = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason, for machines and for people."""

    reason: str
    """One word, as in Kubernetes' own conditions."""
    message: str
    action: str = ""
    code: int | None = None
    """Exit code of the container, when it has ended."""


_STARTING = ("ContainerCreating", "PodInitializing")


def explain_not_started(pod: Object, events: list[Object]) -> Cause:
    """Why a pod that exists has no running container yet."""
    scheduled = find_condition(pod, "PodScheduled", status="False")
    if scheduled:
        return _explain_unscheduled(scheduled)
    name, waiting = _what_waits(pod)
    reason, said = word(waiting.get("reason", "")), one_line(waiting.get("message", ""))
    if reason and reason not in _STARTING:
        value = "image.*" if name == CONTAINER else "initContainers"
        return _explain_waiting(reason, said, image=_image(pod, name), value=value)
    trouble = newest_warning(events, kind="Pod", name=pod["metadata"]["name"])
    if trouble:
        return _explain_setup(trouble)
    node = pod.get("spec", {}).get("nodeName")
    if not node:
        return Cause(reason="Scheduling", message="the scheduler has not looked at it yet")
    return Cause(reason="Starting", message=f"the container is being made on node {node}")


def _what_waits(pod: Object) -> tuple[str, Object]:
    """The container that holds a pod back, and why: an init container does before the training can."""
    statuses: list[Object] = pod.get("status", {}).get("initContainerStatuses") or []
    for status in statuses:
        waiting: Object = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", _STARTING[0]) not in _STARTING:
            return str(status.get("name") or CONTAINER), waiting
    return CONTAINER, container_state(pod).get("waiting") or {}


def _explain_waiting(reason: str, said: str, *, image: str, value: str) -> Cause:
    if reason in ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"):
        action = f"correct {value} or imagePullSecrets of the release, or load the image onto the nodes"
        return Cause(reason=reason, message=f"the image {image} cannot be pulled: {said}", action=action)
    if reason == "CreateContainerConfigError":
        return Cause(reason=reason, message=said, action=_advise_on_config(said, image=image, value=value))
    return Cause(reason=reason, message=said or "the container cannot start", action="kubectl describe pod")


def _advise_on_config(said: str, *, image: str, value: str) -> str:
    """What to do about a container that cannot be described to the runtime: its user, or a Secret or ConfigMap that it reads."""
    if any(words in said for words in ("runAsNonRoot", "non-root policy")):
        where = "runAsUser of the release" if value.startswith("image") else f"securityContext.runAsUser in {value}"
        return (
            f"set {where} to a number above 0, such as 65532, or give {image} a numeric USER above 0: root is refused"
        )
    key = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) \S*?/(\S+)", said)
    if key:
        return f"add the key {key[1]} to the {key[2]} {key[3]}; the pod then starts by itself"
    if "not found" in said:
        return "make what it names in this namespace; the pod then starts by itself"
    return "kubectl describe pod"


def _explain_unscheduled(condition: Object) -> Cause:
    reason, said = word(condition.get("reason", "")), one_line(condition.get("message", ""))
    if reason == "SchedulingGated":
        return Cause(
            reason=reason, message="a scheduling gate holds it back", action="ask who runs the cluster's queue"
        )
    claim = re.search(r'persistentvolumeclaim "([^"]+)" not found', said)
    short = re.findall(r"Insufficient ([\w./-]*\w)", said)
    if claim:
        action = f"make the PersistentVolumeClaim {claim[1]}, or correct persistence.existingClaim"
    elif "unbound immediate PersistentVolumeClaims" in said:
        action = "no volume can be made: set persistence.storageClassName, or use object storage (store.uri)"
    elif "ReadWriteOncePod access mode already in-use" in said:
        action = f"wait: the pod starts when the run that uses the volume has ended; {_FOR_SEVERAL_RUNS}"
    elif short:
        action = f"lower resources.requests ({', '.join(dict.fromkeys(short))}) of the release, or add nodes"
    elif "untolerated taint" in said:
        action = "add tolerations to the release, or nodes without the taint"
    elif "affinity" in said or "selector" in said:
        action = "correct nodeSelector or affinity of the release, or label a node"
    else:
        action = "kubectl describe pod"
    return Cause(reason=reason or "Unschedulable", message=f"no node takes the pod: {said}", action=action)


_FOR_SEVERAL_RUNS = "for runs beside each other set store.uri, or persistence.accessModes={ReadWriteMany}"


def _explain_setup(event: Object) -> Cause:
    reason, said = word(event.get("reason", "")), one_line(event.get("message", ""))
    action = "make what it names in this namespace" if "not found" in said else "kubectl describe pod; look at the node"
    if said.startswith("Multi-Attach error"):
        action = f"wait: the pod starts when the run on the other node has ended; {_FOR_SEVERAL_RUNS}"
    return Cause(reason=reason, message=said, action=action)


def explain_gone(events: list[Object]) -> Cause | None:
    """Why pods that are gone never ran a container, by what events tell of them; nothing when one ran, or when none tell."""
    about_pods = [event for event in events if event.get("involvedObject", {}).get("kind") == "Pod"]
    if any(event.get("reason") == "Started" for event in about_pods):
        return None
    warnings = [event for event in about_pods if event.get("type") == "Warning"]
    newest = max(warnings, key=event_time, default=None)
    if newest is None:
        return None
    if newest.get("reason") == "FailedScheduling":
        return _explain_unscheduled({"reason": "Unschedulable", "message": newest.get("message", "")})
    return _explain_setup(newest)


def explain_not_made(events: list[Object], *, job: str) -> Cause | None:
    """Why the Job controller could not make a pod, or nothing when it did not try in vain."""
    event = newest_warning(events, kind="Job", name=job, reason="FailedCreate")
    if event is None:
        return None
    said = one_line(event.get("message", ""))
    for words, word, action in _REFUSALS:
        if all(any(each in said for each in either.split("|")) for either in words):
            return Cause(reason=word, message=said, action=action)
    return Cause(reason="FailedCreate", message=said, action="kubectl describe job")


# What the API server says when it refuses a pod (all of the words; | separates alternatives), our word for it, what to do.
_REFUSALS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("exceeded quota",),
        "QuotaExceeded",
        "free some of the quota, or have it raised (kubectl describe quota); the Job goes on trying",
    ),
    (("violates PodSecurity",), "PodSecurity", "use the pod settings of the chart, or another namespace"),
    (("serviceaccount", "not found"), "NoServiceAccount", "make the ServiceAccount, or serviceAccount.create=true"),
    (("per Container|per Pod",), "LimitRange", "change resources of the release to fit the LimitRange"),
    (
        ("denied|admission",),
        "AdmissionRefused",
        "a rule of the cluster refuses the pod: change what it names, or ask who runs the cluster",
    ),
)


def find_condition(thing: Object, kind: str, *, status: str = "True") -> Object | None:
    """The condition of that type, when it has that status."""
    conditions = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind and each.get("status") == status), None)


def has_ended(pod: Object) -> bool:
    """Whether nothing of a pod runs, or will."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def container_state(pod: Object) -> Object:
    """The state of the container `train`, or of the first that has one: a pod that others changed may have more."""
    state: Object = _container_status(pod).get("state") or {}
    return state


def container_name(pod: Object) -> str:
    """Of that container."""
    return str(_container_status(pod).get("name") or CONTAINER)


def _container_status(pod: Object) -> Object:
    statuses: list[Object] = pod.get("status", {}).get("containerStatuses") or [{}]
    return next((status for status in statuses if status.get("name") == CONTAINER), statuses[0])


def exit_code_of(terminated: Object) -> int:
    """Of a container that has ended; an end without one is no success."""
    return int(terminated.get("exitCode", ExitCode.UNKNOWN))


def termination_message(state: Object) -> Object:
    """What the job wrote at its end or with its last checkpoint; nothing when it is not the job's JSON."""
    return parse_message(state.get("message") or "")


def newest_warning(events: list[Object], *, kind: str, name: str, reason: str = "") -> Object | None:
    """The last warning about an object."""
    found = [
        event
        for event in events
        if event.get("type") == "Warning"
        and event.get("involvedObject", {}).get("kind") == kind
        and event.get("involvedObject", {}).get("name") == name
        and reason in ("", event.get("reason"))
    ]
    return max(found, key=event_time, default=None)


def event_time(event: Object) -> str:
    """When it was last seen; RFC 3339, so that it sorts as text."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max(str(time or "") for time in times)


def one_line(text: object) -> str:
    """As one line of at most 300 characters."""
    return texts.one_line(text, limit=300)


def word(text: object) -> str:
    """A reason, which Kubernetes gives in one word of at most 128 letters."""
    return texts.one_line(text, limit=128)


def _image(pod: Object, name: str) -> str:
    spec = pod.get("spec", {})
    containers: list[Object] = [*(spec.get("containers") or [{}]), *(spec.get("initContainers") or [])]
    found = next((each for each in containers if each.get("name") == name), containers[0])
    return one_line(found.get("image", "?"))
