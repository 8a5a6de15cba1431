"""What README and docs say of the chart, against what its templates make."""

import re
import tomllib
from typing import Any

import yaml

from tests.charts.helm import CHART, IMAGE, find, render, run_id
from tests.conftest import REPOSITORY

_PAGES = [CHART / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BESIDE_THE_JOB: dict[str, Any] = {
    "serviceAccount": {"annotations": {"a": "b"}},
    "clientRole": {"create": True},
    "networkPolicy": {"enabled": True},
    "test": {"waitSeconds": 60},
    "successfulJobsHistoryLimit": 1,
    "failedJobsHistoryLimit": 1,
}


def test_a_cronjob_that_a_page_names_is_that_of_the_release_which_the_page_installs() -> None:
    """`cronjob/nightly-mnist-train` was there once, and the CronJob of the release `nightly` is called `nightly`."""
    found = 0
    for page in _PAGES:
        text = page.read_text()
        named = set(re.findall(r"cronjob/[\w-]+", text)) - {"cronjob/NAME"}
        found += len(named)
        if not named:
            continue
        releases = {*re.findall(r"helm install (\S+) charts/mnist-train", text), "train"}
        names = {f"cronjob/{find(render(name=name), 'CronJob')['metadata']['name']}" for name in releases}
        assert named <= names, page.name
    assert found


def test_what_stands_beside_the_job_changes_in_place() -> None:
    def job(values: dict[str, Any]) -> tuple[str, str]:
        manifests = render(values)
        return run_id(manifests), str(find(manifests, "Job")["metadata"]["name"])

    assert job(_BESIDE_THE_JOB) == job({})
    assert job({"monitoring": {"scrape": "none"}})[1] != job({})[1]  # annotations of the pod
    readme = (CHART / "README.md").read_text()
    assert [
        name
        for name in ("serviceAccount.annotations", "clientRole", "networkPolicy", "test")
        if f"`{name}`" not in readme
    ] == []


def test_the_row_of_gpus_names_the_tag_that_scripts_image_makes() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert "version=$version-$flavour" in (REPOSITORY / "scripts" / "image").read_text()
    [row] = [line for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| GPUs |")]
    assert f"image.tag={version}-gpu" in row
    for name in ("gpu", "workers-gpu"):
        values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
        assert values["image"] == IMAGE | {"tag": f"{version}-gpu"}


def test_the_readme_names_no_folder_that_is_not_in_the_package() -> None:
    left_out = [line for line in (CHART / ".helmignore").read_text().splitlines() if line.endswith("/")]
    readme = (CHART / "README.md").read_text()
    assert left_out
    assert [name for name in left_out if re.search(rf"(?<!charts/mnist-train/){name}", readme)] == []
