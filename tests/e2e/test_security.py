"""What only a cluster can show: the inside of a pod, what a restricted namespace refuses, that it takes what is rendered."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from generators import pod_types

from tests.charts.drawn import draw
from tests.charts.helm import Manifest, RenderError, pod_spec, render, render_text
from tests.e2e.cluster import Namespace, run_command, wait_until

_LOOK = """
import json, os, stat

def is_writable(folder):
    try:
        with open(folder + "/.written", "w"):
            return True
    except OSError:
        return False

found = {"setuid": [], "programs": []}
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
    for path in (os.path.join(folder, name) for name in files):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            found["setuid"].append(path)
        if os.path.basename(folder) in ("bin", "sbin") and os.access(path, os.X_OK):
            found["programs"].append(os.path.basename(path))
found["status"] = dict(line.strip().split(":\\t", 1) for line in open("/proc/1/status") if ":\\t" in line)
found["writable"] = [folder for folder in ("/", "/app", "/opt/venv", "/etc", "/usr", "/tmp", "/work") if is_writable(folder)]
found["token"] = os.path.exists("/var/run/secrets") or os.path.exists("/run/secrets/kubernetes.io")
print(json.dumps(found))
"""


@pytest.mark.security("S2", "S7")
def test_a_pod_has_no_rights_no_token_no_shell_and_a_root_that_nobody_writes(ns: Namespace) -> None:
    job = ns.install("train", {"train": {"epochs": 100_000}})
    pod = wait_until(
        lambda: [each["metadata"]["name"] for each in ns.pods(job) if each["status"].get("phase") == "Running"],
        "running pod",
        seconds=180,
    )[0]
    found: dict[str, Any] = json.loads(ns.kubectl("exec", pod, "--", "python", "-c", _LOOK))
    with pytest.raises(AssertionError, match="sh"):
        ns.kubectl("exec", pod, "--", "sh", "-c", "true")
    ns.kubectl("debug", pod, "--image=busybox:1", "--target=train", "--profile=restricted", "--", "sh", "-c", "true")
    run_command("kubectl", "--namespace", ns.name, "delete", "job", job, "--wait=false")
    assert found["writable"] == ["/tmp", "/work"]
    assert found["setuid"] == []
    assert {name.rstrip(".0123456789") for name in found["programs"]} == {"python"}
    assert found["token"] is False
    status = found["status"]
    assert status["Uid"].split() == ["65532"] * 4
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 4
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")  # 2: a filter


def _with(pod: Manifest, changes: dict[str, Any]) -> Manifest:
    """A copy of a pod; changes of `containers` go into its only container."""
    copy: Manifest = json.loads(json.dumps(pod))
    for name, value in changes.items():
        place = copy["spec"]["containers"][0] if name == "container" else copy["spec"]
        for field, each in (value if name == "container" else {name: value}).items():
            old = place.get(field)
            place[field] = (
                {**old, **each} if isinstance(old, dict) else [*old, *each] if isinstance(old, list) else each
            )
    return copy


_PRIVILEGES: dict[str, dict[str, Any]] = {
    "privileged": {"container": {"securityContext": {"privileged": True, "allowPrivilegeEscalation": True}}},
    "allow-privilege-escalation": {"container": {"securityContext": {"allowPrivilegeEscalation": True}}},
    "capability": {"container": {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}}},
    "capabilities-kept": {"container": {"securityContext": {"capabilities": {"drop": []}}}},
    "root": {"container": {"securityContext": {"runAsUser": 0}}},
    "may-be-root": {"securityContext": {"runAsNonRoot": False}},
    "no-seccomp": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    "no-apparmor": {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    "sysctl": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "proc-mount": {"hostUsers": False, "container": {"securityContext": {"procMount": "Unmasked"}}},
    "host-network": {"hostNetwork": True},
    "host-pid": {"hostPID": True},
    "host-ipc": {"hostIPC": True},
    "host-path": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    "nfs": {"volumes": [{"name": "nfs", "nfs": {"server": "nfs.example", "path": "/"}}]},
    "host-port": {"container": {"ports": [{"containerPort": 9091, "hostPort": 9091}]}},
}


@pytest.mark.security("S2")
def test_a_restricted_namespace_takes_the_pod_and_none_with_a_privilege(ns: Namespace) -> None:
    [job] = [each for each in render(namespace=ns.name) if each["kind"] == "Job"]
    spec = pod_spec(job) | {"serviceAccountName": "default"}
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}, "spec": spec}
    pods = [plain, *(_with(plain, each) | {"metadata": {"name": name}} for name, each in _PRIVILEGES.items())]
    accepted, refused = _dry_run(ns, pods)
    assert accepted == ["pod/plain"]
    assert len(refused) == len(_PRIVILEGES)
    for name in _PRIVILEGES:
        assert any(f'pods "{name}" is forbidden: violates PodSecurity "restricted' in line for line in refused), name


def _dry_run(ns: Namespace, manifests: list[Manifest]) -> tuple[list[str], list[str]]:
    """What the server would accept, and its errors; as Helm sends it: by server-side apply."""
    command = [
        str(shutil.which("kubectl")),
        "--namespace",
        ns.name,
        "apply",
        "--server-side",
        "--dry-run=server",
        "-f",
        "-",
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=500, check=False)
    accepted = [line.partition(" ")[0] for line in done.stdout.splitlines() if "serverside-applied" in line]
    return accepted, [line for line in done.stderr.splitlines() if not line.startswith("Warning:")]


def _drawn_manifests(num: int, namespace: str) -> Iterator[Manifest]:
    """Of releases with drawn values: what the server can judge without a Prometheus operator and without their classes."""
    for index, values in enumerate(draw(num, seed=num)):
        try:
            text = render_text(values, name=f"r{index}", namespace=namespace)
        except RenderError:
            continue
        for manifest in yaml.safe_load_all(text):
            if manifest and manifest["kind"] == "Pod":  # admitted at once, unlike those of Jobs
                manifest["spec"] |= {"serviceAccountName": "default"}
                for name in ("priorityClassName", "runtimeClassName"):
                    manifest["spec"].pop(name, None)
            if manifest and manifest["kind"] not in ("PodMonitor", "PrometheusRule"):
                yield manifest


@pytest.mark.security("S1", "S12")
@pytest.mark.parametrize("num", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_the_api_server_accepts_whatever_the_chart_renders(ns: Namespace, num: int) -> None:
    """R20."""
    manifests = list(_drawn_manifests(num, ns.name))
    accepted, refused = _dry_run(ns, manifests)
    assert refused == []
    assert len(accepted) == len(manifests) > 2 * num


def test_the_types_of_pods_are_those_of_this_api_server() -> None:
    """The chart's schema is compared with `pod-types.json`, which was made of a cluster of the version that it names."""
    version = json.loads(run_command("kubectl", "version", "-o", "json"))["serverVersion"]["gitVersion"]
    kept = pod_types.FILE.read_text("utf-8")
    if json.loads(kept)["version"] != version:
        pytest.skip(f"the types are those of {json.loads(kept)['version']}, this cluster is {version}")
    openapi = json.loads(run_command("kubectl", "get", "--raw", "/openapi/v3/api/v1"))
    assert pod_types.to_text(version, pod_types.extract(openapi)) == kept
