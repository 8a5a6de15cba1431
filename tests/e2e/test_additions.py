"""What users add to a release, in a cluster: a native sidecar ends with the training, and nothing asks for rights."""

from typing import Any

import pytest

from tests.e2e.cluster import Namespace

_RESOURCES = {"limits": {"cpu": "100m", "memory": "32Mi"}}
_LOOK = "id -G; cat /work/fetched; touch /written"
_BUSYBOX: dict[str, Any] = {"image": "busybox:1", "imagePullPolicy": "IfNotPresent", "resources": _RESOURCES}


@pytest.mark.slow
@pytest.mark.security("S2")
def test_a_sidecar_sees_the_folders_of_the_training_and_ends_with_it(ns: Namespace) -> None:
    """In a namespace that enforces `restricted`; the Job's own labels change in place."""
    script = f"trap 'echo told to stop; exit 0' TERM; {_LOOK}; while :; do sleep 1; done"
    values: dict[str, Any] = {
        "jobLabels": {"team": "before"},
        "podSecurityContext": {"supplementalGroups": [2000]},
        "initContainers": [
            _BUSYBOX | {"name": "fetch", "command": ["sh", "-c", "echo fetched > /work/fetched"]},
            _BUSYBOX | {"name": "side", "restartPolicy": "Always", "command": ["sh", "-c", script]},
        ],
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "more"},
                "data": {"a": "{{ .Release.Name }}"},
            }
        ],
    }
    job = ns.install("train", values)
    assert ns.wait_for_end(job) == "Complete"
    said = ns.kubectl("logs", f"job/{job}", "--container", "side").splitlines()
    assert set(said[0].split()) == {"65532", "2000"}
    assert said[1:] == ["fetched", "touch: /written: Read-only file system", "told to stop"]
    [more] = [each for each in ns.get("configmap") if each["metadata"]["name"] == "more"]
    assert more["data"] == {"a": "{{ .Release.Name }}"}
    assert ns.install("train", values, {"jobLabels": {"team": "after"}}) == job
    assert ns.job(job)["metadata"]["labels"]["team"] == "after"
