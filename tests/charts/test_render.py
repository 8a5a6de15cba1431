"""What the chart renders: valid for Kubernetes, without rights, the same each time, and one pod for Job, CronJob and test."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from job.contract import ExitCode
from tests.charts.helm import Manifest, RenderError, arguments, find, job_spec, pod_spec, render, render_text
from tests.conftest import REPOSITORY, skip_or_fail

CHART = REPOSITORY / "charts" / "mnist-train"
GOLDEN = Path(__file__).parent / "golden"
_KINDS = (
    "ConfigMap",
    "CronJob",
    "Job",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
)
_REVIEWED = ("defaults", "workers", "workers-gpu")
CI_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
_NEVER_RETRIED = {
    ExitCode.CONFIG,
    ExitCode.INTEGRITY,
    ExitCode.NOT_FOUND,
    ExitCode.TRAINING_FAILED,
    ExitCode.CONFLICT,
    ExitCode.ACCESS_DENIED,
    ExitCode.GATE_REFUSED,
}

every_ci_file = pytest.mark.parametrize("file", CI_FILES, ids=lambda file: file.name.removesuffix("-values.yaml"))


def _with_pods(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in ("Job", "CronJob", "Pod")]


@pytest.mark.security("S12")
@every_ci_file
def test_kubernetes_knows_every_field(file: Path) -> None:
    for manifest in render(files=(file,)):
        if manifest["kind"] == "PodMonitor":  # of the Prometheus operator
            continue
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.fixture(scope="module")
def kubeconform(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """kubeconform with the schemas of kubernetes_validate, which name each other as a server would; what it says of manifests."""
    program = shutil.which("kubeconform")
    if program is None:
        skip_or_fail("no kubeconform on PATH")
    folder = tmp_path_factory.mktemp("schemas")
    package = Path(str(kubernetes_validate.__file__)).parent / "kubernetes-json-schema" / "v1.37.0-local-strict"
    for name in ("_definitions", *(path.stem for kind in _KINDS for path in package.glob(f"{kind.lower()}-*v1.json"))):
        schema = json.loads(
            (package / f"{name}.json").read_text().replace("/api/_definitions.json", "_definitions.json")
        )
        del schema["$id"]
        (folder / f"{name}.json").write_text(json.dumps(schema))

    def check(manifests: str) -> str:
        location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
        command = [str(program), "-strict", "-summary", "-skip", "PodMonitor", "-schema-location", location]
        return subprocess.run(command, input=manifests, capture_output=True, text=True, timeout=60, check=False).stdout

    return check


@pytest.mark.security("S12")
def test_kubeconform_finds_nothing_in_any_example(kubeconform: Callable[[str], str]) -> None:
    texts = [render_text(files=(file,)) for file in CI_FILES]
    num_monitors = sum(text.count("\nkind: PodMonitor\n") for text in texts)
    num = sum(text.count("\nkind: ") for text in texts)
    summary = f"Summary: {num} resources found parsing stdin - Valid: {num - num_monitors}, Invalid: 0, Errors: 0, "
    assert kubeconform("".join(texts)) == summary + f"Skipped: {num_monitors}\n"
    assert "backofLimit" in kubeconform(texts[0].replace("backoffLimit", "backofLimit"))


def test_a_misspelt_field_would_be_found() -> None:
    job = find(render(), "Job")
    job["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, "1.37", strict=True)


@every_ci_file
def test_lint_is_clean(file: Path) -> None:
    helm = shutil.which("helm")
    if helm is None:
        skip_or_fail("no helm on PATH")
    done = subprocess.run(
        [str(helm), "lint", "--strict", str(CHART), "--values", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _assert_confined(container: Manifest) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[A-Za-z0-9_][A-Za-z0-9_.-]*$", container["image"])
    assert not {"hostPort", "hostIP"} & {field for port in container.get("ports", []) for field in port}


@pytest.mark.security("S7", "S12")
@every_ci_file
def test_pods_ask_for_no_rights(file: Path) -> None:
    """The restricted Pod Security standard, a read-only root, and no token of the Kubernetes API."""
    manifests = render(files=(file,))
    kinds = {manifest["kind"] for manifest in manifests}
    assert kinds.isdisjoint({"ClusterRole", "ClusterRoleBinding", "Secret"})
    assert (
        kinds.isdisjoint({"Role", "RoleBinding"}) or file.name == "client-role-values.yaml"
    )  # for people, not for pods
    for manifest in _with_pods(manifests):
        pod = pod_spec(manifest)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "ephemeralContainers"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"].get("runAsUser", 65532) != 0
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        assert len(pod["containers"]) == 1
        for container in pod["containers"] + pod.get("initContainers", []):
            _assert_confined(container)
    for manifest in manifests:
        if manifest["kind"] == "ServiceAccount":
            assert manifest["automountServiceAccountToken"] is False


@every_ci_file
def test_job_and_cronjob_describe_one_pod(file: Path) -> None:
    """They differ in the run's id, which a schedule takes from the Job's name; the test in what it does, and it has no peers."""
    of_peers = ("workers", "WORKER_INDEX", "TF_CONFIG")

    def without_arguments(manifest: Manifest) -> dict[str, Any]:
        pod: dict[str, Any] = json.loads(json.dumps(pod_spec(manifest)))
        [container] = pod["containers"]
        del container["args"]
        pod.pop("subdomain", None)
        for field in ("env", "ports"):
            container[field] = [each for each in container[field] if each["name"] not in of_peers]
        return pod

    manifests = render(files=(file,))
    described = [without_arguments(manifest) for manifest in _with_pods(manifests)]
    assert all(pod == described[0] for pod in described)
    jobs = [manifest for manifest in manifests if manifest["kind"] == "Job"]
    for job in jobs:
        cron = find(manifests, "CronJob")
        assert arguments(job)[2:] == arguments(cron)[2:]
        without_pod = [{**job_spec(each), "template": None, "suspend": None} for each in (job, cron)]
        assert without_pod[0] == without_pod[1]
        assert [pod_spec(each)["containers"][0]["env"] for each in (job, cron)] == [
            pod_spec(job)["containers"][0]["env"]
        ] * 2


@every_ci_file
def test_two_renders_are_equal(file: Path) -> None:
    assert render_text(files=(file,)) == render_text(files=(file,))


@pytest.mark.parametrize("name", _REVIEWED)
def test_examples_render_as_reviewed(name: str) -> None:
    """`python -m tests.charts.test_render` writes the reviewed text again."""
    assert render_text(files=(CHART / "ci" / f"{name}-values.yaml",)) == (GOLDEN / f"{name}.yaml").read_text()


def test_exit_codes_that_no_retry_can_help_fail_the_job() -> None:
    disruption, codes = job_spec(find(render(), "Job"))["podFailurePolicy"]["rules"]
    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert codes["action"] == "FailJob"
    assert codes["onExitCodes"]["containerName"] == "train"
    assert codes["onExitCodes"]["values"] == sorted(_NEVER_RETRIED)


def test_the_gpu_limit_is_what_the_job_expects() -> None:
    manifests = render({"resources": {"limits": {"nvidia.com/gpu": 2}}})
    assert "--cluster.expected_gpus=2" in arguments(find(manifests, "Job"))


def test_aks_gives_its_token_to_every_pod_of_an_annotated_service_account() -> None:
    label, annotation = "azure.workload.identity/use", {"azure.workload.identity/client-id": "00000000-0000"}

    def labels_of(values: dict[str, Any]) -> list[str | None]:
        pods = _with_pods(render(values))
        metadata = [pod if pod["kind"] == "Pod" else job_spec(pod)["template"] for pod in pods]
        return [pod["metadata"]["labels"].get(label) for pod in metadata]

    assert labels_of({"serviceAccount": {"annotations": annotation}}) == ["true"] * 3, "Job, CronJob and test"
    assert labels_of({"serviceAccount": {"annotations": {"iam.gke.io/gcp-service-account": "a@b"}}}) == [None] * 3
    own = {"serviceAccount": {"annotations": annotation}, "podLabels": {label: "false"}}
    assert labels_of(own) == ["false"] * 3, "who says otherwise is heard"


def test_prometheus_finds_the_pods_of_runs_as_chosen() -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = job_spec(find(render(values), "Job"))["template"]["metadata"]["annotations"]
        return {name: value for name, value in found.items() if name.startswith("prometheus.io/")}

    wanted = {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/metrics"}
    assert annotations({}) == wanted
    assert annotations({"observe": {"metrics_port": 8080}}) == wanted | {"prometheus.io/port": "8080"}
    assert annotations({"podAnnotations": {"prometheus.io/scrape": "false"}})["prometheus.io/scrape"] == "false"
    assert annotations({"observe": {"metrics_address": "0.0.0.0"}}) == wanted
    for none in (
        {"observe": {"metrics_port": 0}},
        {"observe": {"metrics_address": "127.0.0.1"}},
        {"observe": {"metrics_address": "::1"}},
        {"observe": {"metrics_address": "0:0:0:0:0:0:0:1"}},
        {"monitoring": {"scrape": "none"}},
    ):
        assert annotations(none) == {}
    assert "ports" not in pod_spec(find(render({"observe": {"metrics_port": 0}}), "Job"))["containers"][0]
    assert "prometheus.io/scrape" not in find(render(), "Pod")["metadata"]["annotations"]  # `helm test` serves nothing


def test_a_pod_monitor_selects_the_pods_of_runs_by_the_port_they_have() -> None:
    manifests = render({"monitoring": {"scrape": "podMonitor", "labels": {"release": "prometheus"}}})
    monitor = find(manifests, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = monitor["spec"]["selector"]
    labels = job_spec(find(manifests, "Job"))["template"]["metadata"]["labels"]
    assert selector["matchLabels"].items() <= labels.items()
    assert selector["matchExpressions"] == [{"key": "batch.kubernetes.io/job-name", "operator": "Exists"}]
    [port] = pod_spec(find(manifests, "Job"))["containers"][0]["ports"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [port["name"]]


@pytest.mark.parametrize(
    ("scrape", "ingress"), [("annotations", [{"ports": [{"port": 9090, "protocol": "TCP"}]}]), ("none", [])]
)
def test_a_network_policy_lets_in_what_scrapes(scrape: str, ingress: list[object]) -> None:
    policy = find(render({"networkPolicy": {"enabled": True}, "monitoring": {"scrape": scrape}}), "NetworkPolicy")
    assert policy["spec"]["ingress"] == ingress


def test_large_numbers_and_lists_stay_what_they_are() -> None:
    values = {
        "data": {"train_examples": 1_000_000},
        "model": {"hidden_units": [8, 16]},
        "train": {"learning_rate": 1e-7},
        "run": {"seed": 4294967295},
        "store": {"uri": "s3://bucket", "path_style": False},
    }
    given = arguments(find(render(values), "Job"))
    assert {
        "--data.train_examples=1000000",
        "--model.hidden_units=[8,16]",
        "--train.learning_rate=1e-7",
        "--run.seed=4294967295",
        "--store.path_style=false",
    } <= set(given)


def test_fraction_is_a_number_also_from_the_command_line() -> None:
    """`helm --set train.learning_rate=0.05` gives the chart a string."""
    jobs = [find(render({"train": {"learning_rate": value}}), "Job") for value in (0.05, "0.05")]
    assert "--train.learning_rate=0.05" in arguments(jobs[1])
    assert jobs[0] == jobs[1]
    assert find(render({"train": {"learning_rate": "0.01"}}), "Job") == find(render(), "Job")
    with pytest.raises(RenderError, match=r"train/learning_rate.*fast"):
        render({"train": {"learning_rate": "fast"}})


def test_every_rendered_argument_is_accepted_by_the_job(tmp_path: Path) -> None:
    from job.config_sources import load_config

    for file in CI_FILES:
        manifests = render(files=(file,))
        settings = [argument.replace("$(JOB_NAME)", "job") for argument in arguments(find(manifests, "CronJob"))[1:]]
        loaded = load_config([setting.replace("$$", "$") for setting in settings], config_file=None)
        assert loaded.config.store.uri == (yaml.safe_load(file.read_text()).get("store") or {}).get(
            "uri", "file:/data/store"
        )


def test_the_store_is_a_volume_that_stays_unless_a_uri_is_given() -> None:
    manifests = render()
    claim = find(manifests, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "--store.uri=file:/data/store" in arguments(find(manifests, "Job"))
    assert not [m for m in render({"store": {"uri": "s3://b"}}) if m["kind"] == "PersistentVolumeClaim"]


def test_without_a_schedule_the_cronjob_never_fires() -> None:
    spec = find(render(), "CronJob")["spec"]
    assert (spec["suspend"], spec["schedule"]) == (True, "0 0 31 2 *")


def test_a_test_of_a_run_verifies_it_and_of_a_schedule_checks_the_store() -> None:
    run = arguments(find(render(), "Pod"))
    assert run[0] == "verify"
    assert run[1].startswith("--run=ml.train-")
    schedule = arguments(find(render({"schedule": "0 3 * * *", "activeDeadlineSeconds": 60}), "Pod"))
    assert schedule[:2] == ["store", "check"]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for reviewed in _REVIEWED:
        (GOLDEN / f"{reviewed}.yaml").write_text(render_text(files=(CHART / "ci" / f"{reviewed}-values.yaml",)))
        print(f"wrote {os.path.relpath(GOLDEN / reviewed)}.yaml")
