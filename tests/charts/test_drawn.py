"""R20 without a cluster: values drawn from the schema either render what Kubernetes knows, or are refused with the way out."""

import re

import kubernetes_validate
import pytest
import yaml

from tests.charts.drawn import draw
from tests.charts.helm import RenderError, render_text


@pytest.mark.security("S12")
def test_drawn_values_render_what_kubernetes_knows_or_say_what_to_do(is_full: bool) -> None:
    rendered, unexplained = 0, list[str]()
    for values in draw(60 if is_full else 12, seed=20261126):
        try:
            manifests = [each for each in yaml.safe_load_all(render_text(values)) if each]
        except RenderError as error:
            unexplained += [str(error)] if not re.search(r"\): .* (must|needs|is not used with) ", str(error)) else []
            continue
        rendered += 1
        for manifest in manifests:
            if manifest["kind"] not in ("PodMonitor", "PrometheusRule"):
                kubernetes_validate.validate(manifest, "1.37", strict=True)
    assert not unexplained
    assert rendered > (30 if is_full else 5)
