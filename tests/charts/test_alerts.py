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

from tests.charts.helm import CHART

_PLAIN = CHART / "files" / "mnist-train.rules.yaml"
_HOUR, _DAY = 3600, 86400
_PUSHED = 'instance="",job="mnist-train",model="mnist",namespace="ml",release="train",origin="schedule"'
_BY_HAND = _PUSHED.replace("schedule", "manual")
_OTHER_MODEL, _NO_MODEL = _PUSHED.replace("mnist", "digits"), _PUSHED.replace('model="mnist",', "")
_LIVE = 'instance="10.1.2.3:9090",job="ml/train",namespace="ml",pod="train-29123456-x2x4z"'
_KUBE = 'instance="10.1.2.4:8080",job="kube-state-metrics",namespace="ml"'
_CRON = f'{_KUBE},cronjob="train"'
_OF_CLIENT, _OF_OTHER = "train-bcdfghjklm", "train-b-29123402"
_VERDICTS, _OUTCOMES = ("promoted", "same", "refused"), ("committed", "skipped", "failed", "interrupted")
_NIGHT = [3 + 24 * number for number in range(8)]

Values = dict[int, float | str | None]
"""Step -> what a series is from there on. None: it is gone. A text is promtool's own: `0+30x` grows by 30 each step."""


@dataclass(slots=True)
class Story:
    """What a Prometheus sees, step by step, and which alerts fire then."""

    name: str
    group: str
    seconds: int
    """Of a step."""
    changes: dict[str, Values] = field(default_factory=dict)
    said: list[tuple[str, int, bool]] = field(default_factory=list)

    def put(self, series: str, values: Values) -> None:
        """The series has these values."""
        self.changes.setdefault(series, {}).update(values)

    def end(self, at: int) -> None:
        """From this step on there is nothing more."""
        for series in self.changes:
            self.put(series, {at: None})

    def says(self, alert: str, *, fires: tuple[int, ...] = (), silent: tuple[int, ...] = ()) -> None:
        """The alert fires at some steps, and does not at others."""
        alert = f"MnistTrain{alert}"
        self.said += [(alert, step, True) for step in fires] + [(alert, step, False) for step in silent]

    def push_start(self, at: int, *, group: str = _PUSHED) -> None:
        """An attempt has started 15 minutes before this step."""
        start = at * self.seconds - 900
        self.put(f"mnist_train_last_start_timestamp_seconds{{{group}}}", {at: start})
        self.put(f"push_time_seconds{{{group}}}", {at: start})
        self.put(f"push_failure_time_seconds{{{group}}}", {at: 0})

    def push(
        self,
        at: int,
        *,
        code: int = 0,
        outcome: str = "committed",
        verdict: str = "",
        group: str = _PUSHED,
        **more: float,
    ) -> None:
        """An attempt ends at this step; it has started 15 minutes before. Without a verdict the gate was not asked."""
        now = at * self.seconds
        self.push_start(at, group=group)
        trained = (
            {"run_start_timestamp_seconds": now - 900, "run_duration_seconds": 900} if outcome == "committed" else {}
        )
        values = {"last_run_timestamp_seconds": now, "exit_code": code, **trained, **more}
        values |= {"last_success_timestamp_seconds": now} if code == 0 else {}
        values |= {"champion_timestamp_seconds": now} if verdict == "promoted" else {}
        for name, value in values.items():
            self.put(f"mnist_train_{name}{{{group}}}", {at: value})
        self.put(f"push_time_seconds{{{group}}}", {at: now})
        self._choose("outcome", outcome, _OUTCOMES, at=at, group=group)
        self._choose("gate_verdict", verdict, _VERDICTS if verdict else (), at=at, group=group)

    def _choose(self, name: str, chosen: str, choices: tuple[str, ...], *, at: int, group: str) -> None:
        for choice in choices:
            series = f'mnist_train_{name}{{{group},{name.removeprefix("gate_")}="{choice}"}}'
            self.put(series, {at: float(choice == chosen)})

    def fail(self, *steps: int, code: int = 69) -> None:
        """Attempts that end with an error before they train."""
        for at in steps:
            self.push(at, code=code, outcome="failed")

    def make_job(self, at: int, name: str, *, is_complete: bool = True) -> None:
        """A Job ends at this step, as kube-state-metrics tells it."""
        labels = f'{_KUBE},job_name="{name}"'
        self.put(f"kube_job_created{{{labels}}}", {at: at * self.seconds - 900})
        if is_complete:
            self.put(f"kube_job_status_completion_time{{{labels}}}", {at: at * self.seconds})
        else:
            self.put(f'kube_job_failed{{{labels},condition="true"}}', {at: 1})

    def live(self, name: str, values: Values, *, labels: str = "") -> None:
        """A series of /metrics of a pod."""
        prefix = "" if name.startswith("process_") else "mnist_train_"
        self.put(f"{prefix}{name}{{{_LIVE}{labels and ','}{labels}}}", values)

    def be_in(self, phases: dict[int, str]) -> None:
        """The pod is in these phases, each from its step on."""
        for each in set(phases.values()):
            self.live("phase", {at: float(each == now) for at, now in phases.items()}, labels=f'phase="{each}"')

    def to_test(self) -> dict[str, Any]:
        """As promtool takes it."""
        last = max(step for _, step, _ in self.said) + 1
        series = [{"series": name, "values": _to_values(values, last)} for name, values in self.changes.items()]
        checks = [
            {
                "expr": f'sum(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": f"{step * self.seconds}s",
                "exp_samples": [{"labels": "{}", "value": int(is_firing)}],
            }
            for alert, step, is_firing in self.said
        ]
        interval = f"{self.seconds}s"
        return {"name": self.name, "interval": interval, "input_series": series, "promql_expr_test": checks}


def _to_values(values: Values, last: int) -> str:
    ordered = sorted(values.items())
    pieces = [f"_x{ordered[0][0]}"] if ordered[0][0] else []
    for (step, value), (following, _) in zip(
        ordered, [*ordered[1:], (max(last, ordered[-1][0]) + 1, None)], strict=True
    ):
        num = following - step
        if value is None:
            pieces += ["stale", *([f"_x{num - 1}"] if num > 1 else [])]
        else:
            pieces.append(f"{value}{num - 1}" if isinstance(value, str) else f"{value}+0x{num - 1}")
    return " ".join(pieces)


STORIES: list[Story] = []
Tell = Callable[[Story], None]


def _schedule(tell: Tell) -> Tell:
    """Nights of a schedule, by the hour, after a first one that is well."""
    story = Story(tell.__name__, "schedule", _HOUR)
    story.push(3, verdict="promoted", test_accuracy=0.97, champion_accuracy=0.97, goodput_ratio=0.6)
    tell(story)
    STORIES.append(story)
    return tell


def _new_schedule(tell: Tell) -> Tell:
    """A schedule without a first night."""
    tell(story := Story(tell.__name__, "schedule", _HOUR))
    STORIES.append(story)
    return tell


def _kube(tell: Tell) -> Tell:
    """Jobs of a CronJob, by the hour."""
    story = Story(tell.__name__, "schedule-kube", _HOUR)
    story.put(f"kube_cronjob_created{{{_CRON}}}", {0: 0})
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", {0: 0})
    tell(story)
    STORIES.append(story)
    return tell


def _run(tell: Tell) -> Tell:
    """A pod, by the minute."""
    tell(story := Story(tell.__name__, "run", 60))
    STORIES.append(story)
    return tell


@_schedule
def two_days_without_a_good_end_though_one_by_hand_is_well(story: Story) -> None:
    story.fail(_NIGHT[1])
    story.push(60, group=_BY_HAND)
    story.push(_NIGHT[4])
    story.says("NoSuccess", silent=(50, 100, 110), fires=(52, 98))


@_schedule
def skipped_nights_are_good_ends(story: Story) -> None:
    for at in _NIGHT[1:4]:
        story.push(at, outcome="skipped")
    for alert in ("NoSuccess", "AccuracyBelowChampion", "Failures", "SlowRun"):
        story.says(alert, silent=(76,))


@_new_schedule
def never_succeeded_one_killed_one_failed_one_by_hand_is_well(story: Story) -> None:
    story.push_start(3)
    story.push(20, group=_BY_HAND)
    story.fail(_NIGHT[1], code=66)
    story.push(_NIGHT[2])
    story.says("NeverSucceeded", silent=(26, 28, 51), fires=(30, 50))
    story.says("NoSuccess", silent=(50,))


@_new_schedule
def a_wrong_setting_hides_the_model_and_then_all_is_well(story: Story) -> None:
    story.push(3, code=64, outcome="failed", group=_NO_MODEL)
    for at in _NIGHT[1:3]:
        story.push(at)
    for alert in ("NeverSucceeded", "PushStale"):
        story.says(alert, silent=(60,))


@_schedule
def another_model_is_trained_from_now_on(story: Story) -> None:
    story.push(_NIGHT[1], group=_OTHER_MODEL)
    story.fail(_NIGHT[2])
    for alert in ("NoSuccess", "PushStale"):
        story.says(alert, silent=(60,))
    story.says("NoSuccess", silent=(74,), fires=(76,))


@_schedule
def the_schedule_is_suspended_for_days_and_then_goes_on(story: Story) -> None:
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", {0: 0, 10: 1, 80: 0})
    for alert in ("NoSuccess", "PushStale"):
        story.says(alert, silent=(60, 81, 104), fires=(107,))


@_schedule
def two_nights_fail_with_attempts_and_one_by_hand_is_well(story: Story) -> None:
    story.fail(_NIGHT[1], _NIGHT[1] + 1, _NIGHT[1] + 2, _NIGHT[2])
    story.push(40, group=_BY_HAND)
    story.push(_NIGHT[3])
    story.says("Failures", silent=(30, 50, 75), fires=(51, 70))


@_schedule
def one_night_fails_one_is_interrupted_and_one_only_starts(story: Story) -> None:
    story.fail(_NIGHT[1])
    story.push(_NIGHT[2], code=75, outcome="interrupted")
    story.push_start(_NIGHT[3])
    story.says("Failures", silent=(27, 52, 76))


@_schedule
def three_nights_are_refused_and_one_is_the_same(story: Story) -> None:
    for at in _NIGHT[1:4]:
        story.push(at, verdict="refused", test_accuracy=0.9, champion_accuracy=0.97)
    story.push(_NIGHT[4], verdict="same", test_accuracy=0.97)
    story.says("Refused", silent=(52, 99), fires=(75, 98))
    story.says("AccuracyBelowChampion", silent=(26, 99), fires=(28, 98))
    story.says("NoSuccess", silent=(98,))


@_schedule
def a_worse_night_then_a_skipped_one_then_a_failed_one(story: Story) -> None:
    story.push(_NIGHT[1], verdict="refused", test_accuracy=0.9, champion_accuracy=0.97)
    story.push(_NIGHT[2], outcome="skipped")
    story.fail(_NIGHT[3])
    story.says("AccuracyBelowChampion", fires=(28, 50), silent=(51, 76))


@_new_schedule
def every_night_is_refused_and_there_never_was_a_champion(story: Story) -> None:
    for at in _NIGHT[:3]:
        story.push(at, verdict="refused", test_accuracy=0.1)
    story.push(_NIGHT[3], verdict="promoted", test_accuracy=0.97)
    story.says("Refused", silent=(50, 75), fires=(51, 74))
    story.says("NoSuccess", silent=(74,))


@_schedule
def the_same_model_again_and_again_is_refused_by_nobody(story: Story) -> None:
    for at in _NIGHT[1:5]:
        story.push(at, verdict="same", test_accuracy=0.968, champion_accuracy=0.97)
    for alert in ("Refused", "AccuracyBelowChampion", "Failures"):
        story.says(alert, silent=(100,))


@_schedule
def a_bad_model_by_hand_raises_nothing(story: Story) -> None:
    for at in (10, 30, 50):
        story.push(at, group=_BY_HAND, verdict="refused", test_accuracy=0.5, champion_accuracy=0.97)
    story.says("AccuracyBelowChampion", silent=(40, 51))
    story.says("Refused", silent=(51,))


@_schedule
def out_of_memory_is_a_start_and_no_end(story: Story) -> None:
    story.push_start(_NIGHT[1])
    story.push(_NIGHT[2])
    story.says("NoEnd", silent=(20, 28, 52), fires=(30, 50))


@_schedule
def one_night_takes_three_times_as_long(story: Story) -> None:
    for at in _NIGHT[1:3]:
        story.push(at)
    story.push(_NIGHT[3], run_duration_seconds=2700)
    story.push(_NIGHT[4], outcome="skipped")
    story.push(_NIGHT[5])
    story.says("SlowRun", silent=(74, 123), fires=(75, 100))


@_schedule
def one_night_loses_its_time_and_a_short_one_does_not_count(story: Story) -> None:
    story.push(_NIGHT[1], goodput_ratio=0.1)
    story.push(_NIGHT[2], goodput_ratio=0.6)
    story.push(_NIGHT[3], goodput_ratio=0.1, run_duration_seconds=60)
    story.says("LowGoodput", silent=(26, 52, 75), fires=(27, 50))


@_schedule
def the_data_change_once(story: Story) -> None:
    data = f'mnist_train_dataset_info{{{_PUSHED},dataset="mnist",digest="%s"}}'
    story.put(data % "old", {3: 1, _NIGHT[2]: None})
    story.put(data % "new", {_NIGHT[2]: 1})
    story.says("DataChanged", silent=(20, 40, 76), fires=(51, 74))


@_schedule
def nothing_is_pushed_for_two_days(story: Story) -> None:
    story.fail(_NIGHT[4])
    story.says("PushStale", silent=(50, 99), fires=(52, 98))
    story.says("NoSuccess", fires=(99,))


@_schedule
def the_gateway_refuses_a_push(story: Story) -> None:
    story.put(f"push_failure_time_seconds{{{_PUSHED}}}", {_NIGHT[1]: _NIGHT[1] * _HOUR})
    story.push(_NIGHT[2])
    story.says("PushFailed", silent=(26, 51), fires=(27, 50))


@_schedule
def the_release_is_removed_and_its_group_is_deleted(story: Story) -> None:
    story.fail(_NIGHT[1], _NIGHT[2])
    story.end(60)
    for alert in ("NoSuccess", "Failures"):
        story.says(alert, fires=(55,), silent=(60, 90))
    story.says("PushStale", silent=(90,))


def _read_exposition(path: Path) -> dict[str, float]:
    """Series -> value."""
    lines = path.read_text("utf-8").splitlines()
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


@_new_schedule
def nights_as_a_pushgateway_recorded_them(story: Story) -> None:
    paths = sorted((Path(__file__).parent / "recorded").glob("*.prom"))
    nights = dict(zip(_NIGHT, map(_read_exposition, paths), strict=False))
    ends = {
        at: max(value for name, value in night.items() if "last_run_timestamp" in name) for at, night in nights.items()
    }

    def move(seconds: float) -> float:
        """The time in the story of what was recorded at that time."""
        at = next(at for at, end in ends.items() if seconds <= end + 1)
        return at * story.seconds - ends[at] + seconds

    for at, night in nights.items():
        for series, value in night.items():
            is_time = value > 0 and re.match(r"\w+_time(stamp)?_seconds\{", series)
            story.put(series, {at: round(move(value)) if is_time else value})
    last = max(nights)
    for alert in ("Failures", "Refused", "NoEnd", "NeverSucceeded", "DataChanged", "PushFailed", "StaleChampion"):
        story.says(alert, silent=(4, 40, last + 47))
    story.says("NoSuccess", silent=(4, last + 47), fires=(last + 49,))
    story.says("PushStale", silent=(4, last + 47), fires=(last + 49,))


@_new_schedule
def the_same_model_is_served_for_a_month(story: Story) -> None:
    story.seconds = _DAY
    story.push(1, verdict="promoted")
    for at in range(2, 34):
        story.push(at, verdict="same")
    story.push(34, verdict="promoted")
    story.says("StaleChampion", silent=(31, 34), fires=(32, 33))


@_kube
def no_job_completes_though_one_by_hand_and_one_of_another_release_do(story: Story) -> None:
    for at, name in {3: "train-29123401", 40: _OF_CLIENT, 41: _OF_OTHER, 99: "train-29123405"}.items():
        story.make_job(at, name)
    story.put(f"kube_cronjob_status_last_successful_time{{{_CRON}}}", {40: 40 * _HOUR})
    story.says("KubeNoSuccess", silent=(50, 99), fires=(52, 98))


@_kube
def jobs_are_deleted_at_once_and_then_the_schedule_is_suspended(story: Story) -> None:
    story.put(f"kube_cronjob_status_last_successful_time{{{_CRON}}}", {3: 3 * _HOUR})
    story.put(f"kube_cronjob_spec_suspend{{{_CRON}}}", {60: 1, 70: 0})
    story.says("KubeNoSuccess", silent=(50, 60, 70, 94), fires=(52, 59, 97))


@_kube
def no_job_ever_completes_such_as_with_a_wrong_image(story: Story) -> None:
    story.make_job(10, _OF_CLIENT)
    story.make_job(51, "train-29123402")
    story.says("KubeNeverSucceeded", silent=(25, 51), fires=(27, 50))
    story.says("KubeNoSuccess", silent=(50,))


@_kube
def exit_64_for_two_nights_and_a_job_by_hand_that_fails(story: Story) -> None:
    story.make_job(3, "train-29123401")
    story.make_job(27, "train-29123402", is_complete=False)
    story.make_job(40, _OF_CLIENT, is_complete=False)
    story.make_job(51, "train-29123403", is_complete=False)
    story.make_job(75, "train-29123404")
    story.says("KubeFailures", silent=(27, 45, 75), fires=(51, 74))


@_kube
def a_job_completes_and_nothing_of_it_is_pushed(story: Story) -> None:
    for at in (3, 51):
        story.push(at)
    for at in (3, 27, 51):
        story.make_job(at, f"train-{29123400 + at}")
    story.says("KubePushMissing", silent=(26, 51), fires=(28, 50))


@_kube
def the_release_is_removed(story: Story) -> None:
    for number, at in enumerate((3, 4)):
        story.make_job(at, f"train-2912340{number}", is_complete=False)
    story.end(6)
    story.says("KubeFailures", fires=(5,), silent=(10,))
    story.says("KubeNeverSucceeded", silent=(25,))


@_run
def no_step_for_minutes_and_on_it_goes(story: Story) -> None:
    story.be_in({0: "train"})
    story.live("seconds_since_progress", {0: "0+0x", 5: "60+60x", 11: "1+0x"})
    story.says("Stalled", silent=(5, 7, 11), fires=(9, 10))


@_run
def compiling_may_take_four_times_as_long_and_publishing_has_no_steps(story: Story) -> None:
    story.be_in({0: "compile", 20: "publish"})
    story.live("seconds_since_progress", {0: "0+60x"})
    story.says("Stalled", silent=(15, 40), fires=(17,))


@_run
def a_phase_does_not_end_and_one_that_may_take_long(story: Story) -> None:
    story.be_in({0: "data", 40: "train", 90: "end"})
    story.says("HungPhase", silent=(29, 40, 80, 125), fires=(31, 39))


@_run
def checkpoints_are_slow_for_a_while(story: Story) -> None:
    story.live("checkpoint_seconds", {0: 2, 5: 40, 10: 3})
    story.says("SlowCheckpoint", silent=(4, 6, 10), fires=(8,))


@_run
def a_checkpoint_grows_old_while_training_goes_on(story: Story) -> None:
    story.be_in({0: "train", 20: "publish"})
    story.live("process_start_time_seconds", {0: 0})
    story.live("checkpoint_last_timestamp_seconds", {0: 0, 15: 900})
    story.says("OldCheckpoint", silent=(9, 15, 40), fires=(12,))


@_run
def an_attempt_goes_on_from_a_checkpoint_of_yesterday(story: Story) -> None:
    story.be_in({100: "train"})
    story.live("process_start_time_seconds", {100: 100 * 60})
    story.live("checkpoint_last_timestamp_seconds", {100: 60})
    story.says("OldCheckpoint", silent=(102,), fires=(112,))


@_run
def a_checkpoint_fails_once(story: Story) -> None:
    story.live("checkpoint_failures_total", {0: 0, 5: 1})
    story.says("CheckpointFailed", silent=(4, 20), fires=(6,))


@_run
def a_store_is_away_for_some_minutes(story: Story) -> None:
    story.live("store_requests_total", {0: "0+100x"}, labels='verb="put",outcome="ok"')
    story.live("store_requests_total", {0: "0+0x", 5: "2+2x", 15: "20+0x"}, labels='verb="put",outcome="error"')
    story.says("StoreErrors", silent=(4, 30), fires=(10,))


@_run
def a_pod_cannot_push(story: Story) -> None:
    story.live("warnings_total", {0: 1}, labels='event="data.leakage"')
    story.live("warnings_total", {2: 1, 9: None}, labels='event="metrics.not_pushed"')
    story.says("PushFails", silent=(1, 9), fires=(3,))


@_run
def memory_comes_near_its_limit(story: Story) -> None:
    story.live("memory_limit_bytes", {0: 2**31})
    story.live("process_resident_memory_bytes", {0: 10**9, 5: 2 * 10**9, 10: 10**9})
    story.says("Memory", silent=(4, 10), fires=(7,))


@_run
def a_pod_is_killed_for_its_memory(story: Story) -> None:
    story.seconds = _HOUR
    pod = f'{_KUBE},pod="train-29123456-x2x4z",uid="1"'
    for reason in ("OOMKilled", "Error"):
        series = f'kube_pod_container_status_terminated_reason{{{pod},container="train",reason="{reason}"}}'
        story.put(series, {2: float(reason == "OOMKilled")})
    story.put(f"kube_pod_completion_time{{{pod}}}", {2: 2 * _HOUR})
    story.says("KubeOutOfMemory", silent=(1, 9), fires=(2, 7))


@cache
def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH (Debian: the package prometheus)")
    return found


@cache
def _groups() -> dict[str, Any]:
    """Name -> group of the plain rules."""
    return {group["name"]: group for group in yaml.safe_load(_PLAIN.read_text("utf-8"))["groups"]}


def _try(folder: Path, group: dict[str, Any], stories: list[Story]) -> str:
    """What promtool finds wrong with stories about the rules of a group; nothing when all alerts do what they should."""
    # No story lasts a week: promtool need not look further back each time.
    rules = json.dumps({"groups": [group]}).replace("[14d:", "[6d:")
    (folder / "rules.yaml").write_text(rules)
    complaints = ""
    for seconds in {story.seconds for story in stories}:
        tests = [story.to_test() for story in stories if story.seconds == seconds]
        every = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{seconds}s", "tests": tests}
        (folder / "tests.yaml").write_text(json.dumps(every))
        command = [_promtool(), "test", "rules", str(folder / "tests.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        complaints += done.stderr + done.stdout if done.returncode else ""
    return complaints


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of all stories."""
    return "".join(
        _try(tmp_path_factory.mktemp("rules"), group, [each for each in STORIES if name == f"mnist-train-{each.group}"])
        for name, group in _groups().items()
    )


@pytest.mark.parametrize("alert", [rule["alert"] for group in _groups().values() for rule in group["rules"]])
def test_alert(alert: str, complaints: str) -> None:
    said = {is_firing for story in STORIES for name, _, is_firing in story.said if name == alert}
    assert said == {True, False}, (
        "an alert has a story in which it fires, and steps before and after at which it does not"
    )
    assert f'"{alert}"' not in complaints.replace("\\", ""), complaints


@pytest.mark.parametrize(
    ("alert", "right", "wrong"),
    [
        ("MnistTrainNoSuccess", 'origin="schedule"', 'origin=~".+"'),
        ("MnistTrainFailures", 'exit_code{origin="schedule",} != 75', 'exit_code{origin="schedule",} != 76'),
        ("MnistTrainKubeNoSuccess", "train-[0-9]{8}", "train-.*"),
    ],
)
def test_a_wrong_rule_is_found(alert: str, right: str, wrong: str, tmp_path: Path) -> None:
    group = next(group for group in _groups().values() if alert in str(group))
    rule = next(rule for rule in group["rules"] if rule["alert"] == alert)
    assert right in rule["expr"]
    changed = {"name": group["name"], "rules": [rule | {"expr": rule["expr"].replace(right, wrong)}]}
    stories = [story for story in STORIES if any(name == alert for name, *_ in story.said)]
    assert f'"{alert}"' in _try(tmp_path, changed, stories).replace("\\", "")
