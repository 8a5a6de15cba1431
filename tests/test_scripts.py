"""What scripts refuse before they do anything."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY, skip_or_fail


def test_e2e_goes_to_no_cluster_that_nobody_has_named(tmp_path: Path) -> None:
    """Its tests cordon nodes: where kubectl happens to point is not enough."""
    if shutil.which("kubectl") is None:
        skip_or_fail("no kubectl on PATH")
    context = {"name": "prod", "context": {"cluster": "prod", "user": "ann"}}
    cluster = {"name": "prod", "cluster": {"server": "https://127.0.0.1:1"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "prod",
        "contexts": [context],
        "clusters": [cluster],
    }
    (tmp_path / "config").write_text(json.dumps(config | {"users": [{"name": "ann"}]}))

    def refusal(**more: str) -> str:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("E2E_CONTEXT", "E2E_IMAGE", "KIND_CLUSTER")
        }
        environ = kept | {"KUBECONFIG": str(tmp_path / "config")} | more
        done = subprocess.run(
            [str(REPOSITORY / "scripts" / "e2e")], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 64
        return done.stderr

    assert "knows no context kind-e2e; E2E_CONTEXT names another" in refusal()
    assert "knows no context kind-mine" in refusal(KIND_CLUSTER="mine")
    assert "E2E_IMAGE must name an image that the nodes of prod can pull" in refusal(E2E_CONTEXT="prod")
