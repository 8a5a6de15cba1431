"""docs/cloud.md: what it tells the user to give to Helm and Kubernetes is taken, and does what the page says."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.charts.helm import IMAGE, find, pod_spec, render
from tests.conftest import REPOSITORY

_PAGE = (REPOSITORY / "docs" / "cloud.md").read_text("utf-8")
_CLOUDS = dict(zip(("EKS", "GKE", "AKS"), _PAGE.split("\n## ")[1:], strict=True))


def _blocks(cloud: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(part.partition("```")[0]) for part in _CLOUDS[cloud].split("```yaml\n")[1:]]


@pytest.mark.parametrize("cloud", _CLOUDS)
def test_values_give_the_pods_their_account_and_their_store(cloud: str) -> None:
    assert _CLOUDS[cloud].startswith(f"{cloud}\n")
    [values] = [block for block in _blocks(cloud) if "kind" not in block]
    manifests = render({"image": IMAGE, **values})
    account, pod = find(manifests, "ServiceAccount"), pod_spec(find(manifests, "Job"))
    assert account["metadata"]["name"] == pod["serviceAccountName"] == "trainer"
    assert account["metadata"]["annotations"] == values["serviceAccount"]["annotations"]
    given = {f"--store.{name}={value}" for name, value in values["store"].items()}
    assert given <= set(pod["containers"][0]["args"])
    assert "envFrom" not in pod["containers"][0], "no Secret"


def test_manifests_are_valid() -> None:
    manifests = [block for cloud in _CLOUDS for block in _blocks(cloud) if "kind" in block]
    assert [manifest["kind"] for manifest in manifests] == ["StorageClass"]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
