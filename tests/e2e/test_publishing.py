"""A release: pushed into a registry on this machine and installed from there; and the chart of the release before, upgraded.

The first needs docker and a kind cluster. REGISTRY names the program of the registry (distribution's `registry`, which Debian
calls docker-registry). BASE names the base image; without it the registry gets the one of this machine. With cosign on PATH, all
is signed and the signatures are checked; without it the test says so.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, skip_or_fail
from tests.e2e.cluster import CHART, Namespace, Object, made_namespace, run_command, wait_until
from tests.e2e.conftest import IMAGE
from tests.ports import free_ports

_VERSION = "99.9.9"
_FORWARD = """
import asyncio, sys

async def copy(source, target):
    while chunk := await source.read(65536):
        target.write(chunk)
        await target.drain()
    target.write_eof()

async def serve(reader, writer):
    there_reader, there_writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

async def main():
    await (await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2]))).serve_forever()

asyncio.run(main())
"""
_CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "0.0.0.0:{port}"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry that docker, helm and the kind node all know as localhost:PORT, where each of them takes plain http."""
    program = os.environ.get("REGISTRY") or shutil.which("registry") or shutil.which("docker-registry")
    if program is None or shutil.which("docker") is None:
        skip_or_fail("no registry: REGISTRY names its program (Debian: docker-registry), and docker must be on PATH")
    [port] = free_ports(1)
    config = tmp_path / "registry.yml"
    config.write_text(_CONFIG.format(folder=tmp_path / "registry", port=port))
    with subprocess.Popen([str(program), "serve", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(port), "registry", seconds=20)
            with _forwarded_on_the_node(port):
                yield f"localhost:{port}"
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _forwarded_on_the_node(port: int) -> Iterator[None]:
    """A pod in the node's network, which sends its own localhost:PORT to this machine."""
    addresses = "{{range .IPAM.Config}}{{.Gateway}} {{end}}"
    gateway = run_command("docker", "network", "inspect", "kind", "--format", addresses).split()[0]
    container = {
        "name": "forward",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", _FORWARD, gateway, str(port)],
    }
    pod = {"hostNetwork": True, "containers": [container], "terminationGracePeriodSeconds": 0}
    with made_namespace(f"e2e-registry-{uuid.uuid4().hex[:8]}", {}, enforced="privileged") as namespace:
        namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forward"}, "spec": pod})
        namespace.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "pod/forward")
        yield


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """A clone that has been cut and tagged as a release."""
    clone = tmp_path / "clone"
    run_command("git", "clone", "--quiet", str(REPOSITORY), str(clone))
    (clone / ".git" / "info" / "exclude").write_text("/.venv\n/.venv-tools\n")
    for name in (".venv", ".venv-tools"):
        if (REPOSITORY / name).exists():
            (clone / name).symlink_to(REPOSITORY / name)
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n- A test.\n", 1))
    _release(clone, "--cut")
    _git(clone, "commit", "--quiet", "--all", "--message", "chore: release")
    _git(clone, "tag", f"v{_VERSION}")
    return clone


def _git(clone: Path, *arguments: str) -> None:
    run_command("git", "-C", str(clone), "-c", "user.name=e2e", "-c", "user.email=e2e@localhost", *arguments)


def _release(clone: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "releasing", _VERSION, *arguments]
    environment = os.environ | {"PYTHONPATH": "scripts:."}
    done = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    return f"{done.stdout}{done.stderr}ended with {done.returncode}\n"


def _push_base(registry: str) -> str:
    name = f"{registry}/debian:trixie-slim"
    run_command("docker", "tag", "debian:trixie-slim", name)
    run_command("docker", "push", "--quiet", name, timeout=300)
    digests = run_command("docker", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", name).split()
    return next(digest for digest in digests if digest.startswith(registry))


@pytest.fixture
def public_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Of the key that signs the release; None when there is no cosign."""
    if shutil.which("cosign") is None:
        warnings.warn("no cosign on PATH: the release is not signed", stacklevel=1)
        return None
    monkeypatch.setenv("COSIGN_PASSWORD", "a password")
    run_command("cosign", "generate-key-pair", "--output-key-prefix", str(tmp_path / "key"))
    monkeypatch.setenv("COSIGN_KEY", str(tmp_path / "key.key"))
    return tmp_path / "key.pub"


def _check_signatures(key: Path, image: str, chart: str, files: Path) -> None:
    """Ask cosign, as whoever installs the release would."""
    options = ("--key", str(key), "--insecure-ignore-tlog=true")
    for name in (image, chart):
        run_command("cosign", "verify", *options, name)
    for kind in ("spdxjson", "slsaprovenance1"):
        run_command("cosign", "verify-attestation", *options, "--type", kind, image)
    signed = [file for file in files.iterdir() if not file.name.endswith(".sigstore.json")]
    assert len(signed) == 6
    for file in signed:
        run_command("cosign", "verify-blob", *options, "--bundle", f"{file}.sigstore.json", str(file))
    signed[0].write_bytes(signed[0].read_bytes() + b"\n")
    with pytest.raises(AssertionError, match="cosign"):
        run_command("cosign", "verify-blob", *options, "--bundle", f"{signed[0]}.sigstore.json", str(signed[0]))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_release_is_pushed_once_and_installed_by_digest(
    registry: str, tagged: Path, ns: Namespace, public_key: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE", os.environ.get("BASE") or _push_base(registry))
    said = _release(tagged, "--registry", registry)
    assert "ended with 0" in said, said
    line = next(line for line in said.splitlines() if line.startswith("helm install"))
    image = f"{registry}/mnist-train@{line.partition('image.digest=')[2]}"
    assert f"pushed {image}" in said

    again = _release(tagged, "--registry", registry)
    assert f"was there already: {image}" in again, again
    chart = next(line.rpartition("pushed ")[2] for line in said.splitlines() if "pushed" in line and "/charts/" in line)
    assert f"was there already: {chart}" in again, again
    if public_key:
        _check_signatures(public_key, image, chart, tagged / "out" / "release" / _VERSION)

    values = (
        "--set",
        "data.source=digits,train.epochs=2,train.global_batch_size=32",
        "--set",
        "persistence.size=100Mi",
    )
    ns.helm(*line.split()[1:], "--plain-http", *values)
    [job] = ns.get("job")
    assert ns.wait_for_end(job["metadata"]["name"], seconds=600) == "Complete"
    [pod] = ns.pods(job["metadata"]["name"])
    [status] = pod["status"]["containerStatuses"]
    assert (pod["spec"]["containers"][0]["image"], status["imageID"]) == (image, image)
    assert job["metadata"]["labels"]["app.kubernetes.io/version"] == _VERSION

    (tagged / "job" / "new.py").write_text('"""New."""\n')
    _git(tagged, "add", ".")
    _git(tagged, "commit", "--quiet", "--message", "feat: another")
    _git(tagged, "tag", "--force", f"v{_VERSION}")
    refused = _release(tagged, "--registry", registry)
    assert f"{registry}/mnist-train:{_VERSION} must stay what it is, and is another one" in refused
    assert "ended with 73" in refused
    assert f"was there already: {image}" not in refused


def _chart_of_the_release_before(folder: Path) -> Path:
    """The chart of the newest tag below the checked-out version; while there is no release, the first chart that there was."""
    tags = run_command("git", "-C", str(REPOSITORY), "tag", "--merged", "HEAD~", "--list", "v*", "--sort=-v:refname")
    first = ("log", "--diff-filter=A", "--format=%H", "--", "charts/mnist-train/Chart.yaml")
    commit = [*tags.split(), *run_command("git", "-C", str(REPOSITORY), *first).split()[-1:]]
    if not commit:
        skip_or_fail("the history of the chart is not in this clone: git fetch --unshallow --tags")
    command = ["git", "-C", str(REPOSITORY), "archive", commit[0], "charts/mnist-train"]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "charts" / "mnist-train"


@pytest.mark.slow
def test_a_run_of_the_release_before_goes_on_after_the_upgrade(ns: Namespace, tmp_path: Path) -> None:
    """The chart of before, with the image of now: the image of before cannot be built again here."""
    before = _chart_of_the_release_before(tmp_path)
    values: Object = {"train": {"epochs": 120}, "checkpoint": {"interval_seconds": 2}}
    ns.install("train", values, chart=before)
    [first] = [str(job["metadata"]["name"]) for job in ns.get("job")]
    old_pod = ns.wait_for_training(first)
    run = ns.job(first)["metadata"]["annotations"]["mnist-train/run"]

    second = ns.install("train", values, chart=CHART)
    assert second not in ("", first)
    assert ns.job(second)["metadata"]["annotations"]["mnist-train/run"] == run
    assert ns.wait_for_end(second) == "Complete"
    [last] = ns.ended(second)
    assert last.pod != old_pod
    assert (last.code, last.message["run"], last.message["outcome"]) == (0, run, "committed")
    restored = [event["step"] for event in ns.events_of(last.pod) if event["event"] == "checkpoint.restored"]
    assert restored[0] > 0
