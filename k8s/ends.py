"""Why a pod ended, or is about to: evictions, signals, exit codes of the job, and the gate's verdict; with what to do.

Pure functions over the objects of the API server.
"""

from job.contract import ExitCode, Field
from k8s.causes import (
    Cause,
    container_name,
    container_state,
    exit_code_of,
    find_condition,
    one_line,
    termination_message,
    word,
)
from k8s.shapes import Object

_SEND = (
    "read the log: it ends with the stacks of all threads; send it with the image's digest and the node's name to whoever "
    "maintains the image"
)
# What a signal means that ended the process, and what to do about it; what the kernel's memory limit does stands apart.
_SIGNALS: dict[int, tuple[str, str, str]] = {
    132: (
        "SIGILL",
        "the node's processor lacks an instruction that the image was built for",
        "choose nodes with a newer processor (nodeSelector of the release), or build the image for this one",
    ),
    134: ("SIGABRT", "native code gave up", _SEND),
    135: (
        "SIGBUS",
        "memory that a file stands behind was not there: a full disk, or shared memory",
        "look for a full disk on the node; raise resources.limits of ephemeral-storage; the run goes on from its last checkpoint",
    ),
    136: ("SIGFPE", "native code divided by zero", _SEND),
    139: ("SIGSEGV", "native code crashed", f"{_SEND}; when one node alone does it, that node is at fault"),
    143: ("SIGTERM", "it was told to stop before it listened, as at its start", "nothing: it is tried again"),
}
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "it was evicted, as when a node is drained",
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "DeletionByTaintManager": "its node was tainted",
    "DeletionByPodGC": "its node is gone",
    "Evicted": "the kubelet evicted it",
    "TerminationByKubelet": "its node was short of memory or disk, or shut down",
}
_GOES_ON = "nothing: the next pod goes on from the last checkpoint"
_MEMORY = "raise resources.limits.memory of the release; the run goes on from its last checkpoint"
_SIGKILL = 137
# What the kubelet says when it evicts a pod that took more than it may have: each next pod would do the same.
_TOO_MUCH: tuple[tuple[str, str], ...] = (
    (
        "local storage usage exceeds",
        "raise resources.limits.ephemeral-storage of the release: the next pod writes as much",
    ),
    ("Usage of EmptyDir volume", "raise the sizeLimit of that volume in extraVolumes: the next pod writes as much"),
    (
        "low on resource: memory",
        "raise resources.requests.memory of the release: who takes more than that is evicted first",
    ),
    (
        "low on resource: ephemeral-storage",
        "raise resources.requests.ephemeral-storage of the release, or free the node's disk",
    ),
)


def explain_end(pod: Object) -> Cause:
    """Why a pod has ended, or is about to."""
    status, disruption = pod.get("status", {}), find_condition(pod, "DisruptionTarget")
    state = container_state(pod).get("terminated")
    code = None if state is None else exit_code_of(state)
    if status.get("reason") == "Evicted":
        disruption = disruption or {"reason": "Evicted"}  # of its own limits: the kubelet sets no condition
    if disruption and code != 0:
        return _explain_disruption(pod, disruption, code)
    reason, said = word(status.get("reason", "")), one_line(status.get("message", ""))
    if reason == "DeadlineExceeded" and code != 0:
        action = (
            "raise activeDeadlineSeconds of the pod, which is not a value of the chart: look at what changes its pods"
        )
        return Cause(reason=reason, message=f"the pod's own deadline is over: {said}", action=action, code=code)
    if state is not None:
        return _explain_container_end(pod, state)
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return Cause(reason="Deleted", message="it was deleted", action=_GOES_ON)
    if reason.startswith("OutOf") or reason in ("NodeAffinity", "UnexpectedAdmissionError"):
        return Cause(reason=reason, message=f"the node refused it: {said}", action="nothing: another pod is made")
    return Cause(reason=reason or "Unknown", message=said or "its end was not reported", action="look at the node")


def _explain_disruption(pod: Object, disruption: Object, code: int | None) -> Cause:
    """Of a pod that was sent away: by a person, by a pod of higher priority, by its node."""
    said = one_line(pod.get("status", {}).get("message", ""))
    why = _DISRUPTIONS.get(disruption.get("reason", ""), one_line(disruption.get("message", "")))
    action = next((action for words, action in _TOO_MUCH if words in said), _GOES_ON)
    text = f"{why} ({said})" if said else why
    if code == _SIGKILL and not said:
        seconds = pod.get("spec", {}).get("terminationGracePeriodSeconds", 30)
        text += f", and killed: it had not ended after its grace period of {seconds} s"
    return Cause(reason=word(disruption.get("reason", "Disrupted")), message=text, action=action, code=code)


def _explain_container_end(pod: Object, state: Object) -> Cause:
    code, reason = exit_code_of(state), word(state.get("reason", ""))
    message = termination_message(state)
    said = one_line(message.get(Field.REASON, ""))
    if code == 0:
        return Cause(reason=ExitCode.OK.word, message=_tell_success(message), code=0)
    if reason == "OOMKilled":
        return Cause(
            reason=reason, message=f"out of memory{_limit_of(pod)}{_how_far(message)}", action=_MEMORY, code=code
        )
    if reason in ("StartError", "ContainerCannotRun"):
        text = one_line(state.get("message", ""))
        return Cause(
            reason=reason, message=f"the container cannot start: {text}", action="rebuild the image", code=code
        )
    if code == _SIGKILL:
        return _explain_kill(pod, message)
    if code in _SIGNALS:
        name, meaning, action = _SIGNALS[code]
        return Cause(
            reason="Killed", message=f"killed with {name}{_how_far(message)}: {meaning}", action=action, code=code
        )
    known = next((each for each in ExitCode if each == code), ExitCode.UNKNOWN)
    text = f"exit code {code}" + (f": {said}" if said else "")
    return Cause(reason=known.word, message=text, action=known.action, code=code)


def _explain_kill(pod: Object, message: Object) -> Cause:
    """SIGKILL, and the kubelet does not say that it was the memory limit of the container."""
    text = f"killed with SIGKILL{_how_far(message)}"
    if pod.get("metadata", {}).get("deletionTimestamp"):
        seconds = pod.get("spec", {}).get("terminationGracePeriodSeconds", 30)
        text += f": it was deleted, and had not ended after its grace period of {seconds} s"
        return Cause(reason="Killed", message=text, action=_GOES_ON, code=_SIGKILL)
    node = pod.get("spec", {}).get("nodeName") or "NODE"
    text += " from outside: not by its memory limit (that would be OOMKilled), and not by an eviction"
    look = f"look for SystemOOM in kubectl describe node {one_line(node)}"
    action = f"{look}: then raise resources.requests.memory; else ask who did it"
    return Cause(reason="Killed", message=text, action=action, code=_SIGKILL)


def _limit_of(pod: Object) -> str:
    """How much memory the container may have, where its pod says so."""
    containers: list[Object] = pod.get("spec", {}).get("containers") or []
    train = next((each for each in containers if each.get("name") == container_name(pod)), {})
    limit = train.get("resources", {}).get("limits", {}).get("memory")
    return f" (the limit is {one_line(limit)})" if limit else ""


def _tell_success(message: Object) -> str:
    """Its outcome, and what the gate said about it."""
    outcome = one_line(message.get(Field.OUTCOME, "done"))
    verdict, said = verdict_of(message), one_line(message.get(Field.REASON, ""))
    told = f"{outcome}, {_VERDICTS.get(verdict, verdict)}" if verdict else outcome
    return f"{told}: {said}" if verdict and said else told


_VERDICTS = {"promoted": "promoted", "same": "the same as the champion", "refused": "refused by the gate"}


def verdict_of(message: Object) -> str:
    """What the gate decided, in one word; an older message says only `promoted`. Empty when it was not asked."""
    said = one_line(message.get(Field.VERDICT, ""))
    promoted = message.get(Field.PROMOTED)
    return said or ("" if promoted is None else "promoted" if promoted else "not promoted")


def _how_far(message: Object) -> str:
    step = message.get(Field.STEP)
    return f" at step {step}, epoch {message.get(Field.EPOCH, 0)}" if step else ""
