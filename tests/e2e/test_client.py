"""`mnist-k8s` in a real cluster, with nothing but the Role of the chart: a story of two runs, one of which is evicted."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.e2e.cluster import Namespace, Object, run_command, wait_until
from tests.e2e.conftest import evict, keys_in, start_tool_pod, unpack_into

_MAY = {
    "jobs.batch": "[create delete get list patch watch]",
    "cronjobs.batch": "[list]",
    "pods": "[list watch]",
    "pods/log": "[get]",
    "events": "[list]",
}


class Client:
    """The command line, as somebody who may do what the Role allows."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "k8s", *arguments, f"--kubeconfig={self.kubeconfig}"]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=300)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{output}{errors}"
        return output + errors if code else output

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "-o", "json"))


def _client_in(ns: Namespace, folder: Path) -> Client:
    """A kubeconfig with a token of the ServiceAccount that the Role is bound to."""
    token = ns.kubectl("create", "token", "person").strip()
    config = yaml.safe_load(run_command("kubectl", "config", "view", "--minify", "--raw", "--flatten"))
    config["users"] = [{"name": "person", "user": {"token": token}}]
    config["contexts"][0]["context"] |= {"user": "person", "namespace": ns.name}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return Client(path)


def _install(ns: Namespace, s3: Object, folder: Path) -> Client:
    ns.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "person"}})
    role = {"clientRole": {"create": True, "subjects": [{"kind": "ServiceAccount", "name": "person"}]}}
    schedule = {"schedule": "0 0 1 1 *", "activeDeadlineSeconds": 600}
    ns.install("train", keys_in(ns), {"store": s3}, role, schedule, {"checkpoint": {"interval_seconds": 2}})
    return _client_in(ns, folder)


def _stored_log(ns: Namespace, s3: Object, run: str) -> list[str]:
    pod = start_tool_pod(ns, endpoint=s3["endpoint"])
    return ns.kubectl("exec", pod, "--", "mnist-job", "logs", run, f"--store.uri={s3['uri']}").splitlines()


def _copy_client(ns: Namespace, pod: str) -> None:
    """The client and its packages, all plain Python: the image of the job does not hold them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name in (
            "k8s",
            "kubernetes",
            "urllib3",
            "certifi",
            "dateutil",
            "six",
            "requests",
            "requests_oauthlib",
            "oauthlib",
            "websocket",
            "idna",
            "charset_normalizer",
            "durationpy",
        ):
            spec = importlib.util.find_spec(name)
            assert spec
            assert spec.origin
            path = Path(spec.origin)
            archive.add(
                path.parent if path.name == "__init__.py" else path,
                arcname=path.name if name == "six" else name,
                filter=_leave_out,
            )
    unpack_into(ns, pod, "/tmp", packed.getvalue())


def _leave_out(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if {"__pycache__", "aio"} & set(entry.name.split("/")) else entry


@pytest.mark.slow
def test_a_pod_uses_it_as_its_service_account(ns: Namespace, s3: Object, tmp_path: Path) -> None:
    _install(ns, s3, tmp_path)
    pod = start_tool_pod(ns, endpoint=s3["endpoint"], service_account="person")
    _copy_client(ns, pod)

    def client(*arguments: str) -> str:
        program = "import sys; sys.path.insert(0, '/tmp'); from k8s.__main__ import main; sys.exit(main())"
        return ns.kubectl("exec", pod, "--", "python", "-c", program, *arguments, timeout=300)

    status = json.loads(client("submit", "--set", "train.epochs=1", "--wait", "-o", "json"))
    assert (status["phase"], status["exit_code"]) == ("Succeeded", 0)
    assert status["run"].startswith(f"{ns.name}.train-")
    assert '"commit.done"' in client("logs", status["run"])
    assert [run["run"] for run in json.loads(client("list", "-o", "json"))] == [status["run"]]


def test_the_role_is_enough_and_no_more(ns: Namespace, s3: Object, tmp_path: Path) -> None:
    client = _install(ns, s3, tmp_path)
    listed = run_command("kubectl", f"--kubeconfig={client.kubeconfig}", "auth", "can-i", "--list").splitlines()
    rights = {line.split()[0]: line[line.rindex("[") :].strip() for line in listed[1:] if not line.startswith(" ")}
    # What everybody may do who has logged in.
    of_all = ("selfsubject", "clustertrustbundles.")
    assert {name: verbs for name, verbs in rights.items() if not name.startswith(of_all)} == _MAY
    refused = client.run("list", "--namespace=default", code=77)
    assert "clientRole.create=true" in refused


@pytest.mark.slow
def test_two_runs_one_evicted_and_followed_one_cancelled(ns: Namespace, s3: Object, tmp_path: Path) -> None:
    client = _install(ns, s3, tmp_path)
    long = "train.epochs=120"
    first = client.read("submit", "--set", long, "--set", "train.learning_rate=0.05")
    second = client.read("submit", "--set", "train.epochs=100000", "--set", "train.learning_rate=0.2")
    with client.start("logs", "-f", first["run"]) as follower:
        pod = ns.wait_for_training(first["job"])
        assert client.read("status", first["run"])["phase"] == "Running"
        evict(ns, pod)
        waited = client.read("wait", first["run"], "--timeout=4m")
        followed, said = follower.communicate(timeout=120)
    assert follower.returncode == 0, said
    assert (waited["phase"], waited["outcome"], waited["attempts"]) == ("Succeeded", "committed", 2)
    events = [line for line in followed.splitlines() if line.startswith("{")]
    assert [json.loads(line)["event"] for line in events].count("run.start") == 2
    assert events == _stored_log(ns, s3, first["run"])

    ns.wait_for_training(second["job"])
    listed = {run["run"]: run for run in client.read("list")}
    assert (listed[first["run"]]["phase"], listed[second["run"]]["phase"]) == ("Succeeded", "Running")
    assert listed[second["run"]]["step"] > 0
    client.run("cancel", second["run"])
    wait_until(lambda: second["job"] not in [job["metadata"]["name"] for job in ns.get("job")], "deletion", seconds=30)
    resumed = client.read("resume", second["run"], "--set", "train.epochs=100000", "--set", "train.learning_rate=0.2")
    pod = ns.wait_for_training(resumed["job"])
    restored = next(event for event in ns.events_of(pod) if event["event"] == "checkpoint.restored")
    assert restored["step"] > 0
    client.run("cancel", second["run"])


def test_a_triggered_run_with_a_bad_setting_of_its_own_is_refused_and_one_that_fails_says_why(
    ns: Namespace, s3: Object, tmp_path: Path
) -> None:
    client = _install(ns, s3, tmp_path)
    assert "train.epochs" in client.run("submit", "--set", "train.epochz=3", code=64)
    assert not ns.get("job")
    client.run("submit", "--set", "data.source=idx", "--set", "data.uri=/nowhere", "--wait", "--timeout=2m", code=66)
    [failed] = client.read("list")
    assert (failed["phase"], failed["reason"], failed["exit_code"]) == ("Failed", "NotFound", 66)
    assert "/nowhere" in failed["message"]
    done = client.read("trigger", "--wait", "--timeout=2m")
    assert (done["phase"], done["promoted"]) == ("Succeeded", True)
