"""The Grafana dashboard of the chart, as JSON. Owns its panels and their expressions; job/observe/metrics.py owns the series.

A series that was pushed has the label `model`. One that a pod serves has none: `mnist_train_info` of its target names the run.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from job.contract import ExitCode
from job.registry.rules import Verdict

Json = dict[str, Any]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
"""Columns of Grafana's grid."""

_LIVE = 'model="",namespace=~"$namespace"'
_PUSHED = 'namespace=~"$namespace",release=~"$release",model=~"$model",origin=~"$origin"'
_GROUP = "namespace, release, model, origin"
_NAME = "{{release}} {{model}} {{origin}}"
_RUN = "{{run}} {{worker}}"
_VERDICTS: tuple[str, ...] = get_args(Verdict)
_ENDS = (*_VERDICTS, "skipped")
"""Of a night that did not fail."""
_COLORS = {"promoted": "green", "same": "blue", "refused": "orange", "skipped": "gray"}
_SHOWN = 0.8
"""How long an end stays in a timeline, in periods of the schedule: a night that is missing is a gap."""


def to_text() -> str:
    """The whole dashboard as the chart holds it."""
    return json.dumps(make_dashboard(), indent=1, ensure_ascii=False) + "\n"


def make_dashboard() -> Json:
    """The whole dashboard, as Grafana imports it."""
    return {
        "uid": "mnist-train",
        "title": "mnist-train",
        "description": "Scheduled and running trainings: docs/monitoring.md says which panel answers what.",
        "tags": ["mnist-train"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-14d", "to": "now"},
        "templating": {"list": [*_variables()]},
        "annotations": {"list": [_promotions()]},
        "panels": _place([*_schedule(), *_models(), *_time(), *_now(), *_around(), *_releases()]),
    }


def pushed(name: str, more: str = "") -> str:
    """A series of the Pushgateway, of the releases and models that were chosen."""
    return f"mnist_train_{name}{{{','.join(filter(None, [_PUSHED, more]))}}}"


def live(name: str, more: str = "") -> str:
    """A series that pods serve."""
    return f"{_full(name)}{{{','.join(filter(None, [_LIVE, more]))}}}"


def of_run(expression: str) -> str:
    """The same with the label `run`, of the runs that were chosen."""
    info = live("info", 'run=~"$run"')
    return f"{expression} * on (namespace, job, instance) group_left (run) {info}"


def _full(name: str) -> str:
    return name if name.startswith("process_") else f"mnist_train_{name}"


def _variables() -> Iterator[Json]:
    start = "mnist_train_last_start_timestamp_seconds"
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    either = f'{{__name__=~"{start}|mnist_train_info"}}'
    yield _variable("namespace", "Namespace", f"label_values({either}, namespace)")
    yield _variable("release", "Release", f'label_values({start}{{namespace=~"$namespace"}}, release)')
    chosen = 'namespace=~"$namespace",release=~"$release"'
    yield _variable("model", "Model", f"label_values({start}{{{chosen}}}, model)")
    yield _variable("origin", "Started by", f"label_values({start}{{{chosen}}}, origin)", everything=".+")
    yield _variable("run", "Run (live panels)", f"label_values({live('info')}, run)")
    yield _periods({"hour": 3600, "6 hours": 6 * 3600, "day": 86400, "week": 7 * 86400}, default="day")


def _variable(name: str, label: str, query: str, *, everything: str = ".*") -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": everything,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _periods(choices: dict[str, int], *, default: str) -> Json:
    return {
        "name": "period",
        "label": "The schedule starts a run every",
        "type": "custom",
        "query": ", ".join(f"{text} : {seconds}" for text, seconds in choices.items()),
        "options": [
            {"text": text, "value": str(seconds), "selected": text == default} for text, seconds in choices.items()
        ],
        "current": {"text": default, "value": str(choices[default])},
    }


def _promotions() -> Json:
    return {
        "name": "Promotions",
        "enable": True,
        "datasource": _SOURCE,
        "iconColor": "green",
        "expr": f"{pushed('champion_timestamp_seconds')} * 1000",
        "useValueForTime": True,
        "step": "1h",
        "titleFormat": "promoted",
        "textFormat": _NAME,
        "tagKeys": "release,model",
    }


def _schedule() -> Iterator[Json]:
    yield _row("Did it run tonight, and why not?")
    yield _stat(
        "Last start",
        "When an attempt last began. A start without an end since then goes on, or was killed.",
        "dateTimeFromNow",
        f"{pushed('last_start_timestamp_seconds')} * 1000",
    )
    yield _stat(
        "Last success",
        "When a run last ended with exit code 0.",
        "dateTimeFromNow",
        f"{pushed('last_success_timestamp_seconds')} * 1000",
    )
    yield _stat(
        "Periods without success",
        "Time since the last success over the period of the schedule that is chosen above: from 2 on, a night was missed.",
        "none",
        f"(time() - {pushed('last_success_timestamp_seconds')}) / $period",
        decimals=1,
        steps=[("green", None), ("orange", 1.5), ("red", 2)],
    )
    yield _stat(
        "Last exit code",
        "Of the last attempt that ended. docs/operations.md has a row for each code.",
        "none",
        pushed("exit_code"),
        mappings=_exit_codes(),
    )
    yield _stat(
        "Last outcome",
        "What the last attempt that ended came to, such as committed, skipped or failed.",
        "none",
        f"{pushed('outcome')} == 1",
        legend="{{release}} {{outcome}}",
        text="name",
    )
    yield _stat(
        "Last verdict",
        "What the gate last said: promoted, same (the champion's twin), or refused. A failed or skipped night does not ask it.",
        "none",
        f"{pushed('gate_verdict')} == 1",
        legend="{{release}} {{verdict}}",
        text="name",
    )
    yield _timeline(
        "Nights by exit code",
        "A bar begins when an attempt ends, and is most of a period long. A gap is a night without an end.",
        _recent(pushed("exit_code")),
        mappings=_exit_codes(),
    )
    yield _timeline(
        "Nights by verdict",
        "What the gate said of each night's run, or that it was skipped. A gap is a night that failed, or one without an end.",
        _recent(_verdict_number()),
        mappings=_numbered_verdicts(),
    )


def _models() -> Iterator[Json]:
    yield _row("What is served, and is tonight's model worse?")
    yield _stat(
        "Served version",
        "Number of the champion when a run last looked; a rollback shows after the next run.",
        "none",
        pushed("champion_version"),
        width=5,
    )
    yield _stat(
        "Served since",
        "When the champion was promoted.",
        "dateTimeFromNow",
        f"{pushed('champion_timestamp_seconds')} * 1000",
        width=5,
    )
    yield _stat(
        "Tonight's model minus the champion",
        "Test accuracy of the last model less that of the one that is served: 0 when it was promoted.",
        "percentunit",
        f"{pushed('test_accuracy')} - {pushed('champion_accuracy')}",
        width=6,
        decimals=2,
    )
    yield _table(
        "Data of the last run",
        "A new digest is other data: accuracies before and after cannot be compared.",
        [("Data", f"max by ({_GROUP}, dataset, digest) ({pushed('dataset_info')})")],
        width=8,
        height=4,
        hidden=["namespace", "origin"],
    )
    yield _graph(
        "Accuracy by night",
        "On the test split. Each promotion is a vertical line.",
        "percentunit",
        (pushed("test_accuracy"), f"{_NAME} of the night"),
        (pushed("champion_accuracy"), f"{_NAME} champion"),
        width=_WIDTH,
        steps=True,
    )


def _time() -> Iterator[Json]:
    yield _row("Where did the time go?")
    seconds, group = pushed("goodput_seconds"), f"({_GROUP})"
    yield _graph(
        "Duration",
        "Of the last run over all of its attempts, and of its last attempt alone.",
        "s",
        (pushed("run_duration_seconds"), f"{_NAME} run"),
        (pushed("duration_seconds"), f"{_NAME} last attempt"),
        steps=True,
    )
    yield _graph(
        "Time by cause",
        "Wall time of all attempts at the last run that trained, as shares. docs/reference.md explains the causes.",
        "percentunit",
        (f"{seconds} / on {group} group_left () sum by {group} ({seconds})", f"{_NAME} {{{{category}}}}"),
        steps=True,
        stacked=True,
    )
    yield _graph(
        "Goodput",
        "Time in training steps that were kept, over the wall time of all attempts: of finished and of running runs.",
        "percentunit",
        (pushed("goodput_ratio"), _NAME),
        (of_run(live("goodput_ratio")), _RUN),
    )


def _now() -> Iterator[Json]:
    yield _row("What is it doing now? (needs a scrape of the pods)")
    yield _timeline(
        "Phase",
        "A line for each phase that an attempt was in; it ends with `end`.",
        of_run(f"({live('phase')} == 1)"),
        legend="{{run}} {{worker}} {{phase}}",
        mappings=[{"type": "value", "options": {"1": {"text": " ", "color": "blue", "index": 0}}}],
        height=9,
    )
    yield _graph(
        "Progress",
        "Steps made over steps to make, over all attempts.",
        "percentunit",
        (of_run(live("progress_ratio")), _RUN),
    )
    yield _graph(
        "Time left, and since the last progress",
        "Silence that grows is a run that hangs; observe.stall_timeout_seconds ends it.",
        "s",
        (of_run(live("eta_seconds")), f"{_RUN} left"),
        (of_run(live("seconds_since_progress")), f"{_RUN} silent"),
    )
    yield _graph(
        "Loss",
        "Of training so far in the epoch, and of the last look at the other splits.",
        "short",
        *_of_splits("loss", "val_loss", "test_loss"),
    )
    yield _graph(
        "Accuracy",
        "Of training so far in the epoch, and of the last look at the other splits.",
        "percentunit",
        *_of_splits("accuracy", "val_accuracy", "test_accuracy"),
    )
    yield _graph(
        "Throughput",
        "Training examples per second, smoothed.",
        "short",
        (of_run(live("examples_per_second")), _RUN),
    )
    yield _graph(
        "Seconds of a step",
        "Quantiles over the steps of the last minutes, estimated from the histogram; compiling is left out.",
        "s",
        *((_quantile(part), f"{_RUN} p{part * 100:g}") for part in (0.5, 0.9, 0.99)),
    )


def _around() -> Iterator[Json]:
    yield _row("Checkpoints, store, memory (needs a scrape of the pods)")
    age = f"(time() - {live('checkpoint_last_timestamp_seconds')})"
    requests = (
        f"sum by (namespace, job, instance, verb, outcome) (rate({live('store_requests_total')}[$__rate_interval]))"
    )
    yield _graph(
        "Checkpoints",
        "How long the last one took, and how old it is: an interruption costs as much training as the checkpoint is old.",
        "s",
        (of_run(live("checkpoint_seconds")), f"{_RUN} took"),
        (of_run(age), f"{_RUN} age"),
    )
    yield _graph(
        "Failed checkpoints, retries and warnings",
        "Counted since the start of the attempt; the log has the reason of each.",
        "short",
        (of_run(live("checkpoint_failures_total")), f"{_RUN} failed checkpoints"),
        (of_run(live("store_retries_total")), f"{_RUN} store retries"),
        (of_run(live("warnings_total")), f"{_RUN} {{{{event}}}}"),
    )
    yield _graph(
        "Requests to the store",
        "Per second, by verb and by how they ended.",
        "reqps",
        (of_run(requests), f"{_RUN} {{{{verb}}}} {{{{outcome}}}}"),
    )
    yield _graph(
        "Memory",
        "Resident memory of the process, and the limit of its container: at the limit the kernel kills it (137).",
        "bytes",
        (of_run(live("process_resident_memory_bytes")), f"{_RUN} used"),
        (of_run(live("memory_limit_bytes")), f"{_RUN} limit"),
    )
    yield _graph(
        "CPUs in use",
        "Seconds of CPU per second; a line at the limit of the pod is a run that its limit holds back.",
        "short",
        (of_run(f"rate({live('process_cpu_seconds_total')}[$__rate_interval])"), _RUN),
    )


def _releases() -> Iterator[Json]:
    yield _row("All releases")
    columns = {
        "Last start": f"{pushed('last_start_timestamp_seconds')} * 1000",
        "Last success": f"{pushed('last_success_timestamp_seconds')} * 1000",
        "Exit code": pushed("exit_code"),
        "Accuracy": pushed("test_accuracy"),
        "Champion": pushed("champion_version"),
        "Champion since": f"{pushed('champion_timestamp_seconds')} * 1000",
        "Champion's accuracy": pushed("champion_accuracy"),
        "Run": pushed("run_duration_seconds"),
        "Goodput": pushed("goodput_ratio"),
    }
    yield _table(
        "Releases",
        "One line for each release, model and origin that ever pushed, until its group is deleted (docs/monitoring.md).",
        [(name, f"max by ({_GROUP}) ({expression})") for name, expression in columns.items()],
        units={
            **dict.fromkeys(("Last start", "Last success", "Champion since"), "dateTimeFromNow"),
            **dict.fromkeys(("Accuracy", "Champion's accuracy", "Goodput"), "percentunit"),
            "Run": "s",
        },
        mappings={"Exit code": _exit_codes()},
        height=10,
    )


def _recent(expression: str) -> str:
    """Only as long as the last end is younger than most of a period."""
    age = f"time() - {pushed('last_run_timestamp_seconds')}"
    return f"{expression} and on ({_GROUP}) ({age} < {_SHOWN} * $period)"


def _verdict_number() -> str:
    """The place in `_ENDS`: one line in a timeline in place of one for each verdict. A failed night has no verdict."""
    numbered = [
        f"{number} * " + pushed("gate_verdict", f'verdict="{name}"') for number, name in enumerate(_VERDICTS, 1)
    ]
    verdict = f"sum by ({_GROUP}) ({' or '.join(numbered)}) > 0"
    judged = pushed("outcome", 'outcome=~"committed|already_committed"') + f" == 1 or {pushed('exit_code')} == 78"
    skipped = f"{len(_ENDS)} * sum by ({_GROUP}) (" + pushed("outcome", 'outcome="skipped"') + " == 1)"
    return f"(({verdict}) and on ({_GROUP}) ({judged}) or on ({_GROUP}) ({skipped}))"


def _quantile(part: float) -> str:
    rate = of_run(f"rate({live('step_seconds_bucket')}[$__rate_interval])")
    return f"histogram_quantile({part:g}, sum by (le, run, worker) ({rate}))"


def _of_splits(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        yield of_run(live(name)), f"{_RUN} {name}"


def _exit_codes() -> list[Json]:
    """0 is green; what Kubernetes tries again is orange; what ends the Job is red."""
    colors = {"nothing to do": "green", "no": "red"}
    options = {
        str(code.value): {
            "text": f"{code.value} {code.word}",
            "color": colors.get(code.again, "orange"),
            "index": index,
        }
        for index, code in enumerate(ExitCode)
    }
    return [{"type": "value", "options": options}]


def _numbered_verdicts() -> list[Json]:
    options = {
        str(number): {"text": name, "color": _COLORS.get(name, "purple"), "index": number}
        for number, name in enumerate(_ENDS, 1)
    }
    return [{"type": "value", "options": options}]


def _row(title: str) -> Json:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "size": (_WIDTH, 1)}


def _panel(
    kind: str, title: str, description: str, *, targets: list[Json], size: tuple[int, int], **fields: Any
) -> Json:
    shown = {"type": kind, "title": title, "description": description, "datasource": _SOURCE}
    return shown | {"targets": targets, "size": size} | fields


def _targets(*queries: tuple[str, str], **fields: Any) -> list[Json]:
    return [
        {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend} | fields
        for index, (expression, legend) in enumerate(queries)
    ]


def _stat(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *,
    legend: str = _NAME,
    text: str = "auto",
    width: int = 4,
    steps: Iterable[tuple[str, float | None]] = (("text", None),),
    **defaults: Any,
) -> Json:
    thresholds = {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}
    return _panel(
        "stat",
        title,
        description,
        targets=_targets((expression, legend), instant=True),
        size=(width, 4),
        fieldConfig={"defaults": {"unit": unit, "thresholds": thresholds, **defaults}, "overrides": []},
        options={
            "textMode": text,
            "colorMode": "value",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        },
    )


def _timeline(
    title: str, description: str, expression: str, *, mappings: list[Json], legend: str = _NAME, height: int = 6
) -> Json:
    return _panel(
        "state-timeline",
        title,
        description,
        targets=_targets((expression, legend)),
        size=(_WIDTH, height),
        fieldConfig={
            "defaults": {"unit": "none", "mappings": mappings, "custom": {"fillOpacity": 80}},
            "overrides": [],
        },
        options={"mergeValues": True, "showValue": "auto", "rowHeight": 0.8, "legend": {"showLegend": False}},
    )


def _graph(
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    width: int = 8,
    steps: bool = False,
    stacked: bool = False,
) -> Json:
    drawn: Json = {"lineInterpolation": "stepAfter" if steps else "linear", "fillOpacity": 60 if stacked else 0}
    if stacked:
        drawn["stacking"] = {"mode": "normal", "group": "A"}
    return _panel(
        "timeseries",
        title,
        description,
        targets=_targets(*queries),
        size=(width, 8),
        fieldConfig={"defaults": {"unit": unit, "custom": drawn}, "overrides": []},
        options={
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def _table(
    title: str,
    description: str,
    columns: list[tuple[str, str]],
    *,
    width: int = _WIDTH,
    height: int,
    units: dict[str, str] | None = None,
    mappings: dict[str, list[Json]] | None = None,
    hidden: Iterable[str] = (),
) -> Json:
    """One line for each set of labels, one column for each label and query."""
    targets = _targets(*((expression, name) for name, expression in columns), instant=True, format="table")
    values = {
        f"Value #{target['refId']}" if len(targets) > 1 else "Value": target["legendFormat"] for target in targets
    }
    overrides = [_override(name, "unit", unit) for name, unit in (units or {}).items()]
    overrides += [_override(name, "mappings", each) for name, each in (mappings or {}).items()]
    without = ["Time", *hidden, *(["Value"] if len(targets) == 1 else [])]
    return _panel(
        "table",
        title,
        description,
        targets=targets,
        size=(width, height),
        fieldConfig={"defaults": {"unit": "none"}, "overrides": overrides},
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": dict.fromkeys(without, True), "renameByName": values}},
        ],
    )


def _override(column: str, name: str, value: Any) -> Json:
    return {"matcher": {"id": "byName", "options": column}, "properties": [{"id": name, "value": value}]}


def _place(panels: Iterable[Json]) -> list[Json]:
    """Panels with their numbers and places: from left to right, a new line where one does not fit."""
    placed: list[Json] = []
    left = top = tallest = 0
    for number, panel in enumerate(panels, 1):
        width, height = panel.pop("size")
        if left + width > _WIDTH:
            left, top, tallest = 0, top + tallest, 0
        placed.append({"id": number, "gridPos": {"x": left, "y": top, "w": width, "h": height}, **panel})
        left, tallest = left + width, max(tallest, height)
    return placed
