"""Every alert, with Prometheus' own promtool: it fires, it stays silent, it ends. And what the chart makes of the rules."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from generators.rules import MATCHERS

from tests.charts.helm import CHART, RenderError, find, render, render_text
from tests.conftest import REPOSITORY

_SOURCE = CHART / "files" / "rules.yaml"
_PLAIN = CHART / "files" / "mnist-train.rules.yaml"
_HOUR, _DAY = 3600, 86400
_PUSHED = 'job="mnist-train",model="mnist",namespace="ml",release="train",origin="schedule"'
_BY_HAND = _PUSHED.replace("schedule", "manual")
_LIVE = 'instance="10.1.2.3:9090",job="ml/train",namespace="ml",pod="train-29123456-x2x4z"'
_KUBE = 'instance="10.1.2.4:8080",job="kube-state-metrics",namespace="ml"'
_CRON = f'{_KUBE},cronjob="train"'
_VERDICTS, _OUTCOMES = ("promoted", "same", "refused"), ("committed", "skipped", "failed", "interrupted")


@dataclass(slots=True)
class Story:
    """What a Prometheus sees, step by step, and what is said of an alert at some steps."""

    name: str
    seconds: int = _HOUR
    """Of a step."""
    changes: dict[str, dict[int, float | str | None]] = field(default_factory=dict)
    """Series -> step -> its value from there on; None: it is gone. A text is promptool's own, such as `0+30x`."""
    said: list[tuple[str, int, bool]] = field(default_factory=list)

    def put(self, series: str, at: int, value: float | str | None) -> None:
        """From this step on the series has this value."""
        self.changes.setdefault(series, {})[at] = value

    def end(self, at: int, *prefixes: str) -> None:
        """From this step on no series with one of these texts in it is there."""
        for series in self.changes:
            if any(prefix in series for prefix in prefixes):
                self.put(series, at, None)

    def says(self, alert: str, **steps: bool) -> "Story":
        """At each step, such as `at_7=True`, whether the alert fires."""
        self.said += [(f"MnistTrain{alert}", int(step.removeprefix("at_")), is_firing) for step, is_firing in steps.items()]
        return self

    def push_start(self, at: int, *, group: str = _PUSHED) -> None:
        """An attempt starts in the hour before this step."""
        self.put(f"mnist_train_last_start_timestamp_seconds{{{group}}}", at, at * self.seconds - 900)
        self.put(f"push_time_seconds{{{group}}}", at, at * self.seconds - 900)
        self.put(f"push_failure_time_seconds{{{group}}}", at, 0)

    def push(self, at: int, *, code: int = 0, outcome: str = "committed", verdict: str | None = "same", group: str = _PUSHED, **more: float) -> None:
        """A run ends at this step; it has begun 15 minutes before."""
        now = at * self.seconds
        self.push_start(at, group=group)
        values: dict[str, float] = {
            "last_run_timestamp_seconds": now,
            "exit_code": code,
            "run_start_timestamp_seconds": now - 900,
            **({"last_success_timestamp_seconds": now} if code == 0 else {}),
            **({"champion_timestamp_seconds": now} if verdict == "promoted" else {}),
            **({"run_duration_seconds": 900} if outcome == "committed" else {}),
            **more,
        }
        for name, value in values.items():
            self.put(f"mnist_train_{name}{{{group}}}", at, value)
        for name, value, choices in (("outcome", outcome, _OUTCOMES), ("gate_verdict", verdict, _VERDICTS)):
            label = name.removeprefix("gate_")
            for choice in choices if value else ():
                self.put(f'mnist_train_{name}{{{group},{label}="{choice}"}}', at, float(choice == value))
        self.put(f"push_time_seconds{{{group}}}", at, now)

    def job(self, at: int, number: int, *, is_complete: bool, name: str = "train") -> None:
        """A Job ends at this step, as kube-state-metrics tells it."""
        labels = f'{_KUBE},job_name="{name}-{number}"'
        self.put(f"kube_job_created{{{labels}}}", at, at * self.seconds - 900)
        if is_complete:
            self.put(f"kube_job_status_completion_time{{{labels}}}", at, at * self.seconds)
        else:
            self.put(f'kube_job_failed{{{labels},condition="true"}}', at, 1)

    def to_test(self) -> dict[str, Any]:
        """As promtool takes it."""
        last = max(step for _, step, _ in self.said) + 1
        return {
            "name": self.name,
            "interval": f"{self.seconds}s",
            "input_series": [
                {"series": series, "values": _values(changes, last)} for series, changes in self.changes.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'sum(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{step * self.seconds}s",
                    "exp_samples": [{"labels": "{}", "value": int(is_firing)}],
                }
                for alert, step, is_firing in self.said
            ],
        }


def _values(changes: dict[int, float | str | None], last: int) -> str:
    ordered = sorted(changes.items())
    pieces = [f"_x{ordered[0][0]}"] if ordered[0][0] else []
    for (step, value), (following, _) in zip(ordered, [*ordered[1:], (last + 1, None)], strict=True):
        num = following - step
        if value is None:
            pieces.append(f"stale{f' _x{num - 1}' if num > 1 else ''}")
        else:
            pieces.append(f"{value}{num - 1}" if isinstance(value, str) else f"{value}+0x{num - 1}")
    return " ".join(pieces)


def _nights(name: str) -> Story:
    """One night at 3:00 that is well: the champion is made."""
    story = Story(name)
    story.push(3, verdict="promoted", test_accuracy=0.97, champion_accuracy=0.97, goodput_ratio=0.6)
    return story


def _of_schedule() -> list[Story]:
    night = [3 + 24 * number for number in range(8)]
    stories: list[Story] = []

    def told(story: Story) -> None:
        stories.append(story)

    story = _nights("no night ends well for two days; then one does")
    story.push(night[1], code=69, outcome="failed", verdict=None)
    story.push(60, group=_BY_HAND)
    story.push(night[4])
    told(story.says("NoSuccess", at_50=False, at_52=True, at_98=True, at_100=False))

    story = _nights("skipped nights are good ends")
    for each in night[1:4]:
        story.push(each, outcome="skipped", verdict=None)
    told(story.says("NoSuccess", at_76=False).says("AccuracyBelowChampion", at_76=False).says("Failures", at_76=False))

    story = Story("never succeeded: one killed, one failed, then one by hand is well, then one of the schedule")
    story.push_start(3)
    story.push(20, group=_BY_HAND)
    story.push(night[1], code=66, outcome="failed", verdict=None)
    story.push(night[2])
    told(story.says("NeverSucceeded", at_26=False, at_28=True, at_50=True, at_51=False).says("NoSuccess", at_50=False))

    story = _nights("two nights fail in a row, with attempts and an interruption; by hand it is well")
    story.push(night[1], code=69, outcome="failed", verdict=None)
    story.put(f"mnist_train_last_run_timestamp_seconds{{{_PUSHED}}}", night[1] + 1, (night[1] + 1) * _HOUR)
    story.push(40, group=_BY_HAND)
    story.push(night[2], code=64, outcome="failed", verdict=None)
    story.push(night[3])
    told(story.says("Failures", at_30=False, at_51=True, at_70=True, at_75=False))

    story = _nights("one night fails, one is interrupted, one starts: no two failures in a row")
    story.push(night[1], code=69, outcome="failed", verdict=None)
    story.push(night[2], code=75, outcome="interrupted", verdict=None)
    told(story.says("Failures", at_27=False, at_52=False))

    story = _nights("three nights are refused, one is the same")
    for each in night[1:4]:
        story.push(each, verdict="refused", test_accuracy=0.9, champion_accuracy=0.97)
    story.push(night[4], test_accuracy=0.97, champion_accuracy=0.97)
    told(
        story.says("Refused", at_52=False, at_75=True, at_98=True, at_99=False)
        .says("AccuracyBelowChampion", at_26=False, at_28=True, at_98=True, at_99=False)
        .says("NoSuccess", at_98=False)
    )

    story = _nights("the same model again and again is refused by nobody")
    for each in night[1:5]:
        story.push(each, verdict="same", test_accuracy=0.968, champion_accuracy=0.97)
    told(story.says("Refused", at_100=False).says("AccuracyBelowChampion", at_100=False).says("Failures", at_100=False))

    story = _nights("a bad model by hand raises nothing")
    for each in (10, 30, 50):
        story.push(each, group=_BY_HAND, verdict="refused", test_accuracy=0.5, champion_accuracy=0.97)
    told(story.says("AccuracyBelowChampion", at_40=False, at_51=False).says("Refused", at_51=False))

    story = _nights("out of memory: a start and no end; the next night is well")
    story.push_start(night[1])
    story.push(night[2])
    told(story.says("NoEnd", at_20=False, at_28=False, at_30=True, at_50=True, at_52=False))

    story = _nights("a night takes three times as long as the others; a skipped one changes nothing")
    for each in night[1:3]:
        story.push(each)
    story.push(night[3], run_duration_seconds=2700)
    story.push(night[4], outcome="skipped", verdict=None)
    story.push(night[5])
    told(story.says("SlowRun", at_74=False, at_75=True, at_100=True, at_123=False))

    story = _nights("a night loses its time")
    story.push(night[1], goodput_ratio=0.1)
    story.push(night[2], goodput_ratio=0.6)
    story.push(night[3], goodput_ratio=0.1, run_duration_seconds=60)
    told(story.says("LowGoodput", at_26=False, at_27=True, at_52=False, at_75=False))

    story = _nights("the data change once")
    data = f'mnist_train_dataset_info{{{_PUSHED},dataset="mnist",digest="%s"}}'
    story.put(data % "old", 3, 1)
    story.put(data % "old", night[2], None)
    story.put(data % "new", night[2], 1)
    told(story.says("DataChanged", at_20=False, at_40=False, at_51=True, at_74=True, at_76=False))

    story = _nights("nothing is pushed for two days; then a night that fails")
    story.push(night[4], code=69, outcome="failed", verdict=None)
    told(story.says("PushStale", at_50=False, at_52=True, at_98=True, at_99=False).says("NoSuccess", at_99=True))

    story = _nights("the gateway refuses a push")
    story.put(f"push_failure_time_seconds{{{_PUSHED}}}", night[1], night[1] * _HOUR)
    story.push(night[2])
    told(story.says("PushFailed", at_26=False, at_27=True, at_50=True, at_51=False))

    story = _nights("the release is removed, and its group is deleted")
    story.push(night[1], code=69, outcome="failed", verdict=None)
    story.end(60, _PUSHED)
    told(story.says("NoSuccess", at_55=True, at_60=False, at_90=False).says("PushStale", at_90=False))

    story = Story("the same model is served for a month", seconds=_DAY)
    story.push(1, verdict="promoted")
    for each in range(2, 34):
        story.push(each)
    story.push(34, verdict="promoted")
    told(story.says("StaleChampion", at_31=False, at_32=True, at_33=True, at_34=False))
    return stories


def _of_kube() -> list[Story]:
    stories: list[Story] = []

    def told(story: Story) -> None:
        for name, value in (("created", 0), ("spec_suspend", 0)):
            story.put(f"kube_cronjob_{name}{{{_CRON}}}", 0, value)
        stories.append(story)

    story = Story("no Job of the schedule completes for two days; one by hand and one of another release do")
    story.job(3, 29123401, is_complete=True)
    story.put(f"kube_job_status_completion_time{{{_KUBE},job_name=\"train-bcdfghjklm\"}}", 40, 40 * _HOUR)
    story.put(f"kube_job_status_completion_time{{{_KUBE},job_name=\"train-b-29123402\"}}", 40, 40 * _HOUR)
    story.put(f"kube_cronjob_status_last_successful_time{{{_CRON}}}", 40, 40 * _HOUR)
    story.job(99, 29123405, is_complete=True)
    told(story.says("KubeNoSuccess", at_50=False, at_52=True, at_98=True, at_99=False))

    story = Story("Jobs are deleted at once: the CronJob's own time counts; then the schedule is suspended")
    story.put(f"kube_cronjob_status_last_successful_time{{{_CRON}}}", 3, 3 * _HOUR)
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", 60, 1)
    told(story.says("KubeNoSuccess", at_50=False, at_52=True, at_60=False))
    story.changes.pop(f"kube_cronjob_spec_suspend{{{_CRON}}}")
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", 0, 0)
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", 60, 1)

    story = Story("no Job of the schedule ever completes: an image that cannot be pulled; by hand it is well; then one completes")
    story.put(f"kube_job_status_completion_time{{{_KUBE},job_name=\"train-bcdfghjklm\"}}", 10, 36000)
    story.job(51, 29123402, is_complete=True)
    told(story.says("KubeNeverSucceeded", at_23=False, at_25=True, at_50=True, at_51=False).says("KubeNoSuccess", at_50=False))

    story = Story("exit 64 for two nights, then a good one, and a Job by hand that fails")
    story.job(3, 29123401, is_complete=True)
    story.job(27, 29123402, is_complete=False)
    story.job(40, 0, is_complete=False, name="train-bcdfghjkl")
    story.job(51, 29123403, is_complete=False)
    story.job(75, 29123404, is_complete=True)
    told(story.says("KubeFailures", at_27=False, at_45=False, at_51=True, at_74=True, at_75=False))

    story = _nights("a Job completes, and nothing of it is pushed")
    story.job(3, 29123401, is_complete=True)
    story.job(27, 29123402, is_complete=True)
    story.push(51)
    story.job(51, 29123403, is_complete=True)
    told(story.says("KubePushMissing", at_26=False, at_28=True, at_50=True, at_51=False))

    story = Story("the release is removed", seconds=_HOUR)
    story.job(3, 29123401, is_complete=False)
    story.job(4, 29123402, is_complete=False)
    told(story.says("KubeFailures", at_5=True, at_10=False).says("KubeNeverSucceeded", at_25=False))
    story.end(6, "kube_")
    return stories


def _pod(story: Story, *, phases: dict[int, str]) -> None:
    for each in ("data", "compile", "train", "checkpoint", "evaluate", "publish", "end"):
        for step, phase in phases.items():
            story.put(f'mnist_train_phase{{{_LIVE},phase="{each}"}}', step, float(each == phase))


def _of_runs() -> list[Story]:
    stories: list[Story] = []

    def told(story: Story, **phases: str) -> None:
        _pod(story, phases={int(step.removeprefix("at_")): phase for step, phase in (phases or {"at_0": "train"}).items()})
        stories.append(story)

    def live(name: str, labels: str = "") -> str:
        prefix = "" if name.startswith("process_") else "mnist_train_"
        return f"{prefix}{name}{{{_LIVE}{labels and ','}{labels}}}"

    story = Story("no step for minutes, and on it goes", seconds=30)
    for step, values in {0: "0+0x", 10: "30+30x", 22: "1+0x"}.items():
        story.put(live("seconds_since_progress"), step, values)
    told(story.says("Stalled", at_10=False, at_16=False, at_19=True, at_22=False))

    story = Story("compiling takes four times as long before it is called stalled, and publishing is never", seconds=60)
    story.put(live("seconds_since_progress"), 0, "0+60x")
    told(story.says("Stalled", at_15=False, at_17=True, at_40=False), at_0="compile", at_20="publish")

    story = Story("a phase that does not end", seconds=60)
    told(story.says("HungPhase", at_29=False, at_31=True, at_39=True, at_40=False, at_99=False), at_0="data", at_40="train", at_41="end")

    story = Story("slow checkpoints", seconds=60)
    for step, value in {0: 2, 5: 40, 10: 3}.items():
        story.put(live("checkpoint_seconds"), step, value)
    told(story.says("SlowCheckpoint", at_4=False, at_6=False, at_8=True, at_10=False))

    story = Story("an old checkpoint, while training goes on and after it", seconds=60)
    for step, value in {0: 0, 15: 900}.items():
        story.put(live("checkpoint_last_timestamp_seconds"), step, value)
    told(story.says("OldCheckpoint", at_9=False, at_12=True, at_15=False, at_40=False), at_0="train", at_20="publish")

    story = Story("a checkpoint that fails once", seconds=60)
    for step, value in {0: 0, 5: 1}.items():
        story.put(live("checkpoint_failures_total"), step, value)
    told(story.says("CheckpointFailed", at_4=False, at_6=True, at_20=False))

    story = Story("a store that is away for some minutes", seconds=60)
    story.put(live("store_requests_total", 'verb="put",outcome="ok"'), 0, "0+100x")
    for step, values in {0: "0+0x", 5: "2+2x", 15: "20+0x"}.items():
        story.put(live("store_requests_total", 'verb="put",outcome="error"'), step, values)
    told(story.says("StoreErrors", at_4=False, at_10=True, at_30=False))

    story = Story("a pod that cannot push", seconds=60)
    story.put(live("warnings_total", 'event="data.leakage"'), 0, 1)
    story.put(live("warnings_total", 'event="metrics.not_pushed"'), 2, 1)
    story.put(live("warnings_total", 'event="metrics.not_pushed"'), 9, None)
    told(story.says("PushFails", at_1=False, at_3=True, at_9=False))

    story = Story("memory comes near its limit", seconds=60)
    story.put(live("memory_limit_bytes"), 0, 2**31)
    for step, value in {0: 10**9, 5: 2 * 10**9, 10: 10**9}.items():
        story.put(live("process_resident_memory_bytes"), step, value)
    told(story.says("Memory", at_4=False, at_7=True, at_10=False))

    story = Story("a pod is killed for its memory; six hours later it is old news")
    pod = f'{_KUBE},pod="train-29123456-x2x4z",uid="1"'
    story.put(f'kube_pod_container_status_terminated_reason{{{pod},container="train",reason="OOMKilled"}}', 2, 1)
    story.put(f'kube_pod_container_status_terminated_reason{{{pod},container="train",reason="Error"}}', 0, 1)
    story.put(f"kube_pod_completion_time{{{pod}}}", 2, 2 * _HOUR)
    told(story.says("KubeOutOfMemory", at_1=False, at_2=True, at_7=True, at_9=False))
    return stories


@cache
def _stories() -> list[Story]:
    return [*_of_schedule(), *_of_kube(), *_of_runs()]


@cache
def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH (Debian: apt-get install prometheus)")
    return found


@cache
def _alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(_SOURCE.read_text())["groups"] for rule in group["rules"]]


_NAMES = [rule["alert"] for rule in _alerts()]


def _check_rules(folder: Path, rules: str) -> None:
    (folder / "rules.yaml").write_text(rules)
    command = [_promtool(), "check", "rules", str(folder / "rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout


def _run(folder: Path, rules: str, stories: list[Story]) -> str:
    """What promtool finds wrong with the stories; nothing when each alert does what it should."""
    (folder / "rules.yaml").write_text(rules)
    said = []
    for seconds in sorted({story.seconds for story in stories}):
        tests = [story.to_test() for story in stories if story.seconds == seconds]
        path = folder / f"every-{seconds}.yaml"
        path.write_text(json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": f"{seconds}s", "tests": tests}))
        said.append([_promtool(), "test", "rules", str(path)])
    done = [subprocess.run(command, capture_output=True, text=True, check=False, timeout=120) for command in said]
    return "".join(each.stderr + each.stdout for each in done if each.returncode)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What promtool finds wrong with the plain rules."""
    return _run(tmp_path_factory.mktemp("rules"), _PLAIN.read_text(), _stories())


@pytest.mark.parametrize("alert", _NAMES)
def test_alert(alert: str, found: str) -> None:
    said = {is_firing for story in _stories() for name, _, is_firing in story.said if name == alert}
    assert said == {True, False}, "it fires in some story, and does not before and after"
    assert f'alertname=\\"{alert}\\"' not in found and f'alertname="{alert}"' not in found, found
