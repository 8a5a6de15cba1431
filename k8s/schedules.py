"""Why a schedule has not started a run: judged from its CronJob and the events about it. Pure functions.

A slot that is missed while a schedule is suspended, or while nothing watches it, leaves no event: `lastScheduleTime` alone tells.
"""

from job.texts import quoted
from k8s.causes import event_time, one_line
from k8s.shapes import Object, parse_time

NEVER = "0 0 31 2 *"
"""The schedule of a release without one: 31 February, which never comes."""
_STARTED = "SuccessfulCreate"
_REFUSED = ("FailedCreate", "UnknownTimeZone", "UnparseableSchedule", "InvalidSchedule")


def explain_schedule(cronjob: Object, events: list[Object]) -> str:
    """What holds a schedule back, and what to do; empty when its newest slot has started a run, or where there is none."""
    name, spec = cronjob["metadata"]["name"], cronjob.get("spec", {})
    if spec.get("schedule") == NEVER:
        return ""
    if spec.get("suspend"):
        return f"schedule {name} is suspended: no slot starts a run; helm upgrade --reset-then-reuse-values --set suspend=false"
    ours = [
        event for event in events if _is_about(event, name) and event.get("reason") in (_STARTED, *_HELD, *_REFUSED)
    ]
    newest = max(ours, key=event_time, default={})
    reason, said = newest.get("reason"), one_line(newest.get("message", ""))
    when = f"schedule {name}, {_minute(event_time(newest))}"
    if reason in _HELD:
        return f"{when}: {_HELD[reason](cronjob, said)}"
    if reason in _REFUSED:
        return f"{when}: no run was started: {said}; correct that; mnist-k8s trigger starts one now"
    return ""


def _tell_overlap(cronjob: Object, said: str) -> str:
    active = (cronjob.get("status", {}).get("active") or [{}])[0].get("name", "")
    what = f"the Job {active} goes on" if active else "the run before went on"
    look = f"mnist-k8s status {quoted(active)}" if active else "mnist-k8s list"
    advice = f"{look}; a smaller activeDeadlineSeconds ends such a run sooner"
    return f"the slot started no run, because {what} (concurrencyPolicy Forbid); {advice}"


def _tell_missed(cronjob: Object, said: str) -> str:
    seconds = cronjob.get("spec", {}).get("startingDeadlineSeconds")
    slot = said.rpartition("start a job: ")[2]
    late = f"more than startingDeadlineSeconds={seconds} late" if seconds is not None else "too late"
    return f"the slot of {slot} started no run: Kubernetes came to it {late}; mnist-k8s trigger starts one now"


_HELD = {"JobAlreadyActive": _tell_overlap, "MissSchedule": _tell_missed}


def _is_about(event: Object, name: str) -> bool:
    about = event.get("involvedObject", {})
    return (about.get("kind"), about.get("name")) == ("CronJob", name)


def _minute(text: str) -> str:
    time = parse_time(text)
    return time.strftime("%Y-%m-%d %H:%M UTC") if time else "at an unknown time"
