"""The dashboard of the chart as Grafana would ask for it: its queries, with the variables filled in."""

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.charts.helm import CHART

FILE = CHART / "files" / "dashboard.json"

Json = dict[str, Any]

_GRAFANA = {"__rate_interval": "1m"}
"""What Grafana itself fills in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a panel.

    Attributes:
        is_live: whether pods answer it while they run; else the Pushgateway does, also afterwards.
    """

    panel: str
    legend: str
    expression: str

    @property
    def is_live(self) -> bool:
        return 'model=""' in self.expression


def read_dashboard() -> Json:
    found: Json = json.loads(FILE.read_text("utf-8"))
    return found


def read_variables() -> dict[str, str]:
    """Name -> the value with which it means everything, or its default."""
    variables = read_dashboard()["templating"]["list"]
    return {each["name"]: each.get("allValue") or each.get("current", {}).get("value", "") for each in variables}


def read_panels() -> list[Json]:
    """Without the rows, which are headings."""
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def read_queries() -> list[Query]:
    """Of all panels, and of the annotations, which are panel "Promotions"."""
    dashboard = read_dashboard()
    targets = [(panel["title"], target) for panel in read_panels() for target in panel["targets"]]
    found = [Query(panel=title, legend=each["legendFormat"], expression=fill(each["expr"])) for title, each in targets]
    notes = dashboard["annotations"]["list"]
    return found + [Query(panel=note["name"], legend="", expression=fill(note["expr"])) for note in notes]


def fill(expression: str) -> str:
    values = read_variables() | _GRAFANA
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], expression)
