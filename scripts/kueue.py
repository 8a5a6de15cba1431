"""Kueue in a kind cluster, built from its Go module, for tests/e2e/test_kueue.py.

Usage: .venv/bin/python scripts/kueue.py up | down     KIND_CLUSTER names the cluster (e2e)

Its webhooks look only at Jobs of namespaces with the label `NAMESPACE_LABEL`: no other Job waits for a Kueue that answers.
Needs go, docker, kind and kubectl. `down` removes everything that `up` made in the cluster.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

VERSION = "v0.17.0"
IMAGE = f"kueue:{VERSION}"
NAMESPACE_LABEL = {"mnist-train/kueue": "true"}

_CLUSTER = os.environ.get("KIND_CLUSTER", "e2e")
_NAMESPACE = "kueue-system"
_KUBECTL = ("kubectl", "--context", f"kind-{_CLUSTER}")
_OURS = ("/mutate-batch-v1-job", "/validate-batch-v1-job")
_KUEUE_S_OWN = "-kueue-x-k8s-io-"
_CONFIGURATION = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta2",
    "kind": "Configuration",
    "health": {"healthProbeBindAddress": ":8081"},
    "metrics": {"bindAddress": "0"},
    "webhook": {"port": 9443},
    "leaderElection": {"leaderElect": False},
    "manageJobsWithoutQueueName": False,
    "managedJobsNamespaceSelector": {"matchLabels": NAMESPACE_LABEL},
    "integrations": {"frameworks": ["batch/job"]},
    "featureGates": {"VisibilityOnDemand": False},
}

Object = dict[str, Any]


def _run(*command: str, **options: Any) -> str:
    print(f"scripts/kueue.py: {' '.join(command[:6])}", file=sys.stderr)
    return str(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout)


def up() -> None:
    """Build it, load it, start it, and wait until its webhook answers."""
    source = Path(json.loads(_run("go", "mod", "download", "-json", f"sigs.k8s.io/kueue@{VERSION}"))["Dir"])
    _build(source)
    manifests = json.dumps(_list(_manifests(source)))
    _run(*_KUBECTL, "apply", "--server-side", "-f", "-", input=manifests)
    _run(*_KUBECTL, "-n", _NAMESPACE, "rollout", "status", "deployment", "--timeout=180s")


def down() -> None:
    """Remove the webhooks first: without them nothing waits for a Kueue that is gone."""
    kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
    chosen = ("-l", "app.kubernetes.io/name=kueue", "--ignore-not-found")
    _run(*_KUBECTL, "delete", kinds, *chosen)
    _run(*_KUBECTL, "delete", "customresourcedefinitions", *chosen, "--timeout=120s")
    _run(*_KUBECTL, "delete", "clusterroles,clusterrolebindings", *chosen)
    _run(*_KUBECTL, "delete", "namespace", _NAMESPACE, "--ignore-not-found")
    _run(*_KUBECTL, "-n", "kube-system", "delete", "rolebindings", *chosen)


def _build(source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ("go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", f"{folder}/manager", "./cmd/kueue")
        _run(*command, cwd=source, env=os.environ | {"CGO_ENABLED": "0"})
        Path(folder, "Dockerfile").write_text(
            'FROM scratch\nCOPY manager /manager\nUSER 65532\nENTRYPOINT ["/manager"]\n'
        )
        _run("docker", "build", "--tag", IMAGE, folder)
    _run("kind", "load", "docker-image", IMAGE, "--name", _CLUSTER)


def _manifests(source: Path) -> list[Object]:
    """Those of config/default, without an aggregated API and without webhooks for kinds that no test makes."""
    text = _run("kubectl", "kustomize", str(source / "config" / "default"))
    manifests = [each for each in yaml.safe_load_all(text) if each and each["kind"] != "APIService"]
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            manifest["data"] = {"controller_manager_config.yaml": json.dumps(_CONFIGURATION)}
        if manifest["kind"] == "Deployment":
            _set_image(manifest["spec"]["template"]["spec"]["containers"][0])
        if manifest["kind"].endswith("WebhookConfiguration"):
            manifest["webhooks"] = [each for each in map(_only_ours, manifest["webhooks"]) if each]
    return manifests


def _set_image(container: Object) -> None:
    container |= {"image": IMAGE, "imagePullPolicy": "Never", "command": ["/manager"]}
    container["resources"]["requests"] = {"cpu": "50m", "memory": "128Mi"}


def _only_ours(webhook: Object) -> Object | None:
    path = webhook["clientConfig"]["service"]["path"]
    if path in _OURS:
        return webhook | {"namespaceSelector": {"matchLabels": NAMESPACE_LABEL}}
    return webhook if _KUEUE_S_OWN in path else None


def _list(items: list[Object]) -> Object:
    return {"apiVersion": "v1", "kind": "List", "items": items}


if __name__ == "__main__":
    {"up": up, "down": down}[sys.argv[1]]()
