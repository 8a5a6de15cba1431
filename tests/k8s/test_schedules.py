"""What is said of a schedule that has not started a run; CronJobs and events as a real cluster gave them (Kubernetes 1.37)."""

import json
from pathlib import Path
from typing import Any

import pytest

from k8s import RunClient
from k8s.commands import _list
from k8s.schedules import NEVER, explain_schedule
from tests.k8s.objects import template
from tests.k8s.server import ApiServer

_RECORDED = Path(__file__).parent / "recorded" / "schedules"


def read(case: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = json.loads((_RECORDED / f"{case}.json").read_text())
    return content["cronjob"], content["events"]


def test_a_slot_that_a_running_job_held_back_names_that_job() -> None:
    said = explain_schedule(*read("held"))
    assert said.startswith(
        "schedule held, 2026-11-26 22:31 UTC: the slot started no run, because the Job held-29928869 goes on"
    )
    assert "mnist-k8s status held-29928869" in said


def test_a_job_that_was_refused_says_why() -> None:
    said = explain_schedule(*read("refused"))
    assert "no run was started: Error creating job: " in said
    assert "exceeded quota: nojobs" in said


def test_a_slot_that_was_missed_names_the_deadline() -> None:
    """The words are those of pkg/controller/cronjob/cronjob_controllerv2.go; such an event is seldom, and was not recorded."""
    cronjob, [started, held] = read("held")
    missed = held | {
        "reason": "MissSchedule",
        "message": "Missed scheduled time to start a job: Thu, 26 Nov 2026 22:30:00 UTC",
    }
    cronjob["spec"]["startingDeadlineSeconds"] = 10
    said = explain_schedule(cronjob, [started, missed])
    assert "the slot of Thu, 26 Nov 2026 22:30:00 UTC started no run: " in said
    assert "more than startingDeadlineSeconds=10 late; mnist-k8s trigger starts one now" in said


def test_a_schedule_whose_newest_slot_started_a_run_is_passed_over() -> None:
    cronjob, [started, held] = read("held")
    assert explain_schedule(cronjob, [started]) == ""
    later = started | {"lastTimestamp": "2026-11-26T22:32:00Z"}
    assert explain_schedule(cronjob, [started, held, later]) == ""
    assert explain_schedule(cronjob, []) == ""


@pytest.mark.parametrize(
    ("schedule", "text"), [("0 3 * * *", "schedule held is suspended: no slot starts a run"), (NEVER, "")]
)
def test_a_suspended_schedule_is_told_from_a_release_without_one(schedule: str, text: str) -> None:
    cronjob, events = read("held")
    cronjob["spec"] |= {"schedule": schedule, "suspend": True}
    assert explain_schedule(cronjob, events).startswith(text)
    assert bool(explain_schedule(cronjob, events)) == bool(text)


@pytest.mark.security("S11")
def test_hostile_events_steer_no_terminal() -> None:
    cronjob, events = read("refused")
    events[-1]["message"] = "\x1b[2J\r\n" + "x" * 5000
    said = explain_schedule(cronjob, events)
    assert said.isprintable()
    assert len(said) < 600


def test_list_tells_of_schedules_beside_the_table(
    client: RunClient, cluster: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    cronjob = template()
    cronjob["spec"]["suspend"] = True
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", cronjob)
    from k8s.cli import parse_command_line

    _list(client, parse_command_line(["list"]))
    assert "mnist-k8s: schedule train is suspended" in capsys.readouterr().err
    _list(client, parse_command_line(["list", "-o", "json"]))
    assert capsys.readouterr().err == ""
