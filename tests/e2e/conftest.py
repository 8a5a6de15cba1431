"""A namespace for each test, and an S3 server in the cluster. Needs KUBECONFIG, kubectl, helm and the image on the nodes.

E2E_IMAGE names the image (mnist-train:e2e). The S3 server is versitygw, unless E2E_S3_URI, E2E_S3_ENDPOINT, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY name another store.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, skip_or_fail
from tests.e2e.cluster import Namespace, Object, made_namespace, run_command, wait_until

IMAGE = os.environ.get("E2E_IMAGE", "mnist-train:e2e")
S3_IMAGE = os.environ.get("E2E_S3_IMAGE", "versity/versitygw:v1.8.0")
_TOOL_POD = REPOSITORY / "scripts" / "kind-mirror.yaml"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "e2e-key", "AWS_SECRET_ACCESS_KEY": "e2e-secret"}
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def base_values() -> Object:
    """Quick training on the embedded digits, in little room."""
    repository, _, tag = IMAGE.rpartition(":")
    return {
        "image": {
            "repository": repository,
            "tag": tag,
            "pullPolicy": "Never" if "/" not in repository else "IfNotPresent",
        },
        "data": {"source": "digits"},
        "train": {"epochs": 2, "optimizer": "momentum", "learning_rate": 0.1, "global_batch_size": 32},
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
            "limits": {"cpu": "2", "memory": "1536Mi", "ephemeral-storage": "1Gi"},
        },
        "persistence": {"size": "100Mi"},
        "backoffLimit": 1,
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Skip, or fail in CI, without a cluster that answers; fail in one that nobody has named."""
    missing = [tool for tool in ("kubectl", "helm") if shutil.which(tool) is None]
    if missing:
        skip_or_fail(f"not on PATH: {', '.join(missing)}")
    asked = subprocess.run(
        ["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        skip_or_fail(f"no cluster answers: {asked.stderr.strip()[:200]}")
    named = os.environ.get("E2E_CONTEXT", f"kind-{os.environ.get('KIND_CLUSTER', 'e2e')}")
    current = run_command("kubectl", "config", "current-context").strip()
    assert current == named, (
        f"kubectl talks to {current}, whose nodes these tests would cordon; E2E_CONTEXT={current} lets them, or use scripts/e2e"
    )


@pytest.fixture
def ns(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A fresh namespace; on failure it is described before it goes."""
    with made_namespace(f"e2e-{uuid.uuid4().hex[:8]}", base_values()) as namespace:
        yield namespace
        report = getattr(request.node, "failed_report", None)
        if report is not None:
            print(namespace.diagnose())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let the fixture know that its test failed."""
    report = yield
    if report.when == "call" and report.failed:  # type: ignore[attr-defined]
        item.failed_report = report  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def s3() -> Iterator[Object]:
    """Values of a store in object storage, without credentials; `keys_in` puts those into a namespace."""
    if "E2E_S3_URI" in os.environ:
        S3_KEYS.update({name: os.environ[name] for name in S3_KEYS})
        prefix = f"{os.environ['E2E_S3_URI'].rstrip('/')}/{uuid.uuid4().hex[:8]}"
        yield {"uri": prefix, "endpoint": os.environ["E2E_S3_ENDPOINT"], "region": "us-east-1"}
        return
    with made_namespace(f"e2e-s3-{uuid.uuid4().hex[:8]}", {}) as namespace:
        namespace.apply(*s3_server())
        wait_until(
            lambda: namespace.get("deployment")[0].get("status", {}).get("readyReplicas"), "S3 server", seconds=120
        )
        endpoint = f"http://s3.{namespace.name}.svc:7070"
        yield {"uri": "s3://models/e2e", "endpoint": endpoint, "region": "us-east-1"}


def s3_server() -> list[Object]:
    """versitygw over an emptyDir; its bucket is a folder."""
    labels = {"app": "s3"}
    container = {
        "name": "s3",
        "image": S3_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["--port", ":7070", "posix", "/data"],
        "env": [
            {"name": "ROOT_ACCESS_KEY", "value": S3_KEYS["AWS_ACCESS_KEY_ID"]},
            {"name": "ROOT_SECRET_KEY", "value": S3_KEYS["AWS_SECRET_ACCESS_KEY"]},
        ],
        "readinessProbe": {"tcpSocket": {"port": 7070}, "periodSeconds": 1},
        "securityContext": _RESTRICTED,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    make_bucket = {
        "name": "bucket",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import os; os.makedirs('/data/models', exist_ok=True)"],
        "securityContext": _RESTRICTED,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
        "initContainers": [make_bucket],
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "s3"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "s3"},
            "spec": {"selector": labels, "ports": [{"port": 7070}]},
        },
    ]


def keys_in(namespace: Namespace, *, name: str = "store-keys", keys: dict[str, str] | None = None) -> Object:
    """Make the Secret with the store's keys; returns the values that use it."""
    namespace.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys or S3_KEYS},
    )
    return {"credentials": {"existingSecret": name}}


def start_tool_pod(namespace: Namespace, *, endpoint: str = "", claim: str = "", service_account: str = "") -> str:
    """The pod of scripts/kind that waits for commands, with the keys of a store or with a volume at /data; returns its name."""
    pod = yaml.safe_load(_TOOL_POD.read_text().replace("JOB_IMAGE", IMAGE).replace("S3_ENDPOINT", endpoint))
    [container] = pod["spec"]["containers"]
    requests = {"cpu": "100m", "memory": "256Mi"}
    container["resources"] = {"requests": requests, "limits": {"cpu": "1", "memory": "1Gi"}}
    if claim:
        pod["spec"]["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        del container["envFrom"]
    if service_account:
        pod["spec"] |= {"serviceAccountName": service_account, "automountServiceAccountToken": True}
    namespace.apply(pod)
    name = str(pod["metadata"]["name"])
    namespace.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"pod/{name}")
    return name


def unpack_into(namespace: Namespace, pod: str, folder: str, packed: bytes) -> None:
    """Unpack a tar archive, compressed or not, into a folder of a pod: the image has neither tar nor mkdir."""
    program = (
        "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|*').extractall(sys.argv[1], filter='data')"
    )
    command = ["kubectl", "--namespace", namespace.name, "exec", "-i", pod, "--", "python", "-c", program, folder]
    subprocess.run(command, input=packed, check=True, timeout=120)


def fill_memory(namespace: Namespace, pod: str) -> None:
    """Write 4 GB into the volume in memory at /hog, until the kernel ends it."""
    program = "file = open('/hog/file', 'wb')\nfor _ in range(4000): file.write(bytes(2**20))"
    namespace.kubectl("exec", pod, "--", "python", "-c", program)


def evict(namespace: Namespace, pod: str) -> None:
    """What a node that is being emptied asks for."""
    eviction = f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}"}}}}'
    run_command(
        "kubectl",
        "create",
        "--raw",
        f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction",
        "-f",
        "-",
        stdin=eviction,
    )
