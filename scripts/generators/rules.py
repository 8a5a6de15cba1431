"""The alerts for those without the Prometheus operator, and their table, both of the chart's files/rules.yaml."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from generators.splice import splice, to_rows

_FILES, _OPERATIONS = "charts/mnist-train/files", "docs/operations.md"
_TEST = "test_alerts.py::test_alert"

MATCHERS = {
    "pushed": 'origin="schedule",',
    "live": "",
    "cronjob": 'cronjob="train",',
    "release": '"$1"',
    "jobs": 'job_name=~"train-[0-9]{8}",',
    "pods": 'pod=~"train-([0-9a-f]{8}|[a-z0-9]{10})(-[0-9]{1,4})?-[a-z0-9]{5}",',
}
"""As `mnist-train.rulePlaces` of the chart, for all releases; kube-state-metrics needs the name of one."""

_HEAD = """\
# Made by scripts/generate of rules.yaml: the alerts with their default thresholds, for a Prometheus without the operator.
# Series of runs are told apart by their labels, whatever the release. The rules on kube-state-metrics name the release "train":
#     sed 's/cronjob="train"/cronjob="NAME"/g; s/"train-/"NAME-/g' mnist-train.rules.yaml
# With other thresholds, and for one release alone, take the spec of what Helm makes:
#     helm template NAME charts/mnist-train -f values.yaml --set monitoring.rules.enabled=true -s templates/prometheusrule.yaml
# What each alert means, and what to do: docs/operations.md.
"""


def make_files(root: Path) -> dict[str, str]:
    """Path -> content."""
    source = yaml.safe_load((root / _FILES / "rules.yaml").read_text("utf-8"))
    return {
        f"{_FILES}/mnist-train.rules.yaml": make_rules(source),
        _OPERATIONS: splice(root / _OPERATIONS, "alerts", make_table(source)),
    }


def make_rules(source: dict[str, Any]) -> str:
    """The file that a Prometheus reads."""
    groups = [
        {"name": f"mnist-train-{group['name']}", "rules": [_make_rule(rule, source) for rule in group["rules"]]}
        for group in source["groups"]
    ]
    return _HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=118)


def _make_rule(rule: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    def fill(text: str) -> str:
        return fill_in(text, MATCHERS | with_sums(source["thresholds"]))

    return {
        "alert": rule["alert"],
        "expr": fill(rule["expr"]),
        **({"for": fill(rule["for"])} if "for" in rule else {}),
        "labels": {"severity": rule["severity"]},
        "annotations": {
            "summary": fill(rule["summary"]),
            "description": fill(rule["description"]),
            "runbook_url": f"{_OPERATIONS}#{rule['runbook']}",
        },
    }


def with_sums(thresholds: dict[str, Any]) -> dict[str, Any]:
    """The thresholds, and the numbers that are made of them, as `mnist-train.rulePlaces` of the chart makes them."""
    period = thresholds["periodSeconds"]
    return thresholds | {"graceSeconds": period + thresholds["endSeconds"], "nightSeconds": min(period, 86400)}


def fill_in(text: str, places: dict[str, Any]) -> str:
    """The text with what stands for each [[NAME]]."""
    for name, value in places.items():
        text = text.replace(f"[[{name}]]", value if isinstance(value, str) else json.dumps(value))
    return text


def make_table(source: dict[str, Any]) -> str:
    """A row for each alert; the matchers of the release are left out of its expression."""
    rows = (_make_row(rule, source["thresholds"]) for group in source["groups"] for rule in group["rules"])
    numbers = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in source["thresholds"].items())
    return (
        to_rows(("alert", "severity", "fires when", "test"), *rows) + f"\nThresholds and their defaults: {numbers}.\n"
    )


def _make_row(rule: dict[str, Any], thresholds: dict[str, Any]) -> tuple[str, ...]:
    numbers = with_sums(thresholds)
    without = re.sub(rf"\[\[({'|'.join(MATCHERS.keys() - {'release'})})\]\]", "", rule["expr"]).replace("{}", "")
    timed = re.sub(r"\[\[(\w+)\]\](?=[sd]\b)", lambda match: json.dumps(numbers[match[1]]), without)
    expression = re.sub(r"\[\[(\w+)\]\]", r"\1", timed).replace("|", r"\|")
    held = f" for {fill_in(rule['for'], thresholds)}" if "for" in rule else ""
    return (
        f"[{rule['alert']}](#{rule['runbook']})",
        rule["severity"],
        f"`{expression}`{held}",
        f"`{_TEST}[{rule['alert']}]`",
    )
