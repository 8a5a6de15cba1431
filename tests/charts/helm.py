"""Renders the chart with the helm on PATH, in a real process."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.conftest import REPOSITORY, skip_or_fail

CHART = REPOSITORY / "charts" / "mnist-train"
IMAGE = {"repository": "registry.example/mnist-train"}

Manifest = dict[str, Any]


class RenderError(Exception):
    """What helm says about values that it refuses."""


def render_text(
    values: Mapping[str, Any] | None = None,
    *,
    files: tuple[Path, ...] = (),
    flags: tuple[str, ...] = (),
    name: str = "train",
    namespace: str = "ml",
    chart: Path = CHART,
) -> str:
    """The manifests as helm prints them; `values` come on top of an image and of `files`, and `flags` on top of all.

    Another chart, one that has this one as a dependency, is given `values` alone.

    Raises:
        RenderError: the schema or the chart refuses the values.
    """
    given = {"image": IMAGE} if not files and chart == CHART else {}
    arguments = [name, str(chart), "--namespace", namespace, *(f"--values={file}" for file in files)]
    return _helm("template", *arguments, *flags, values={**given, **(values or {})})


def notes(values: Mapping[str, Any], *, name: str = "train", namespace: str = "ml") -> str:
    """What `helm install` says at the end, without a cluster."""
    arguments = [name, str(CHART), "--namespace", namespace, "--dry-run=client", "--kubeconfig", "/dev/null"]
    return _helm("install", *arguments, values={"image": IMAGE, **values}).partition("NOTES:\n")[2]


def make_parent(folder: Path, *aliases: str) -> Path:
    """A chart that has this one as a dependency once for each alias; "" is the chart by its own name."""
    dependency = {"name": "mnist-train", "version": ">=0-0", "repository": f"file://{CHART}"}
    dependencies = [
        dependency | ({"alias": alias} if alias else {}) | {"condition": f"{alias or 'mnist-train'}.enabled"}
        for alias in aliases
    ]
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": dependencies}
    folder.mkdir(exist_ok=True)
    (folder / "Chart.yaml").write_text(json.dumps(chart))
    _helm("dependency", "update", str(folder), values={})
    return folder


def _helm(*arguments: str, values: Mapping[str, Any]) -> str:
    helm = shutil.which("helm")
    if helm is None:
        skip_or_fail("no helm on PATH")
    done = subprocess.run(
        [str(helm), *arguments, *(["-f", "-"] if arguments[0] != "dependency" else [])],
        input=_to_yaml(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RenderError(done.stderr.strip())
    return done.stdout


def render(
    values: Mapping[str, Any] | None = None,
    *,
    files: tuple[Path, ...] = (),
    name: str = "train",
    namespace: str = "ml",
    chart: Path = CHART,
) -> list[Manifest]:
    """The same, parsed."""
    text = render_text(values, files=files, name=name, namespace=namespace, chart=chart)
    return [document for document in yaml.safe_load_all(text) if document]


def _to_yaml(values: Mapping[str, Any]) -> str:
    """JSON that YAML reads as the same text: no surrogate pairs, nothing raw that YAML does not allow."""
    text = json.dumps(values, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def find(manifests: list[Manifest], kind: str) -> Manifest:
    """The one manifest of that kind."""
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of kind {kind}"
    return found[0]


def job_spec(manifest: Manifest) -> Manifest:
    """The spec of a Job, or of those that a CronJob makes."""
    spec: Manifest = manifest["spec"]
    return spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec


def pod_spec(manifest: Manifest) -> Manifest:
    """The pod that a Job, CronJob or Pod describes."""
    spec: Manifest = manifest["spec"] if manifest["kind"] == "Pod" else job_spec(manifest)["template"]["spec"]
    return spec


def arguments(manifest: Manifest) -> list[str]:
    """The arguments of the job's container."""
    found: list[str] = pod_spec(manifest)["containers"][0]["args"]
    return found


def fields_of(kind: str) -> set[str]:
    """The fields that Kubernetes itself knows for a part of a pod."""
    package = Path(str(kubernetes_validate.__file__)).parent / "kubernetes-json-schema" / "v1.37.0-local-strict"
    return set(json.loads((package / f"{kind.lower()}-v1.json").read_text())["properties"])


def run_id(manifests: list[Manifest]) -> str:
    """The id that the Job gives to its run."""
    return next(
        argument.partition("=")[2] for argument in arguments(find(manifests, "Job")) if argument.startswith("--run.id=")
    )
