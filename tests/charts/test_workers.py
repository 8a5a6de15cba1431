"""Several workers: one Indexed Job whose pods find each other by name, and nothing of it with one worker."""

import json
import re
from typing import Any

import kubernetes_validate
import pytest

from job.contract import ExitCode
from tests.charts.helm import CHART, Manifest, RenderError, arguments, find, job_spec, notes, pod_spec, render, run_id

_TWO: Manifest = {"cluster": {"workers": 2}}
_S3: Manifest = {"store": {"uri": "s3://b"}, "credentials": {"existingSecret": "keys"}}
_SCHEDULE: Manifest = {"schedule": "0 3 * * *", "activeDeadlineSeconds": 7200}
_FILES = [CHART / "ci" / "workers-values.yaml", CHART / "ci" / "workers-gpu-values.yaml"]
_RFC_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def _env(manifest: Manifest) -> dict[str, Any]:
    return {each["name"]: each for each in pod_spec(manifest)["containers"][0]["env"]}


def _tf_config(manifest: Manifest, *, job: str, index: int) -> Any:
    """As Kubernetes puts it together: a name stands for what is before it in the list."""
    names = list(_env(manifest))
    assert names.index("JOB_NAME") < names.index("TF_CONFIG")
    assert names.index("WORKER_INDEX") < names.index("TF_CONFIG")
    text = str(_env(manifest)["TF_CONFIG"]["value"])
    return json.loads(text.replace("$(JOB_NAME)", job).replace("$(WORKER_INDEX)", str(index)))


@pytest.mark.parametrize("values", [{}, {"cluster": {"workers": 1}}, {"cluster": {"cpu_replicas": 1}}])
def test_one_worker_has_none_of_it(values: dict[str, Any]) -> None:
    manifests = render(values)
    assert {manifest["kind"] for manifest in manifests}.isdisjoint({"Service", "NetworkPolicy"})
    for kind in ("Job", "CronJob"):
        spec = job_spec(find(manifests, kind))
        assert set(spec) == {"backoffLimit", "podReplacementPolicy", "podFailurePolicy", "template"}
        assert {"TF_CONFIG", "WORKER_INDEX"}.isdisjoint(_env(find(manifests, kind)))
        assert "subdomain" not in pod_spec(find(manifests, kind))
    assert manifests == render()


@pytest.mark.parametrize("values", [_TWO, _TWO | _SCHEDULE])
def test_the_job_has_a_pod_for_each_worker_and_ends_with_the_first(values: dict[str, Any]) -> None:
    manifests = render({**values, "backoffLimit": 4})
    for kind in ["CronJob"] if "schedule" in values else ["Job", "CronJob"]:
        spec = job_spec(find(manifests, kind))
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
        assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (4, 0)
        assert "backoffLimit" not in spec
        assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
        assert spec["podReplacementPolicy"] == "Failed"  # two pods of one index end each other


def test_a_worker_that_was_told_to_stop_is_no_failure() -> None:
    """An eviction of worker 1 makes worker 0 exit 75 without the condition DisruptionTarget."""
    disruption, stopped, never = job_spec(find(render(_TWO), "Job"))["podFailurePolicy"]["rules"]
    one_worker = job_spec(find(render(), "Job"))["podFailurePolicy"]["rules"]
    assert [disruption, never] == one_worker
    assert stopped == {
        "action": "Ignore",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [ExitCode.INTERRUPTED]},
    }


@pytest.mark.parametrize("kind", ["Job", "CronJob"])
def test_each_worker_is_told_where_all_are(kind: str) -> None:
    manifests = render({"cluster": {"workers": 3}, "train": {"global_batch_size": 96}})
    manifest, service = find(manifests, kind), find(manifests, "Service")["metadata"]["name"]
    assert pod_spec(manifest)["subdomain"] == service == "workers-train"
    path = _env(manifest)["WORKER_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert _tf_config(manifest, job="train-now", index=1) == {
        "cluster": {"worker": [f"train-now-{index}.workers-train:2222" for index in range(3)]},
        "task": {"type": "worker", "index": 1},
    }
    assert "--cluster.workers=3" in arguments(manifest)


def test_the_service_names_pods_before_they_are_ready() -> None:
    manifests = render(_TWO)
    spec = find(manifests, "Service")["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    labels = job_spec(find(manifests, "Job"))["template"]["metadata"]["labels"]
    assert spec["selector"].items() <= labels.items()


@pytest.mark.parametrize("release", ["a", "2fast", "0" * 53, "0.0", "a" * 43, "a" * 44, "a" * 53, "a.b.c", "workers-a"])
@pytest.mark.parametrize("override", [None, "9" * 253])
def test_names_of_hosts_and_service_fit(release: str, override: str | None) -> None:
    """A Service begins with a letter before Kubernetes 1.36, a host name has 63 characters at most."""
    values = {"cluster": {"workers": 64}, "train": {"global_batch_size": 64}}
    manifests = render(values | ({"fullnameOverride": override} if override else {}), name=release)
    service = find(manifests, "Service")["metadata"]["name"]
    assert re.fullmatch(_RFC_1035, service)
    assert len(service) <= 63
    cron = find(manifests, "CronJob")["metadata"]["name"]
    for job in (find(manifests, "Job")["metadata"]["name"], f"{cron}-29384756", f"{cron}-0123456789"):
        for address in _tf_config(find(manifests, "Job"), job=job, index=63)["cluster"]["worker"]:
            host, _, rest = address.partition(".")
            assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,62}", host)
            assert rest == f"{service}:2222"


def test_releases_side_by_side_share_no_name() -> None:
    """Also those whose names are what the chart makes of others."""
    names: list[tuple[str, str]] = []
    for release in ("a", "workers-a", "a-workers", "a" * 52, "a" * 53):
        manifests = render(_TWO | _S3 | {"networkPolicy": {"enabled": True}}, name=release)
        names += [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("scrape", ["annotations", "none"])
def test_only_pods_of_the_release_reach_workers_and_anybody_the_metrics(scrape: str) -> None:
    manifests = render(_TWO | {"monitoring": {"scrape": scrape}})
    spec = find(manifests, "NetworkPolicy")["spec"]
    labels = job_spec(find(manifests, "Job"))["template"]["metadata"]["labels"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["ingress"] == [
        {"from": [{"podSelector": spec["podSelector"]}]},
        {"ports": [{"port": 9090, "protocol": "TCP"}]},
    ]
    assert "egress" not in spec


def test_without_metrics_nobody_else_gets_in() -> None:
    spec = find(render(_TWO | {"observe": {"metrics_port": 0}}), "NetworkPolicy")["spec"]
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]


@pytest.mark.parametrize(
    ("scrape", "metrics"), [("annotations", [{"ports": [{"port": 9090, "protocol": "TCP"}]}]), ("none", [])]
)
def test_an_enabled_policy_keeps_its_rules_and_adds_the_workers(scrape: str, metrics: list[object]) -> None:
    """One policy: a second one that lets the metrics through would undo what scrape=none closes."""
    values = {"networkPolicy": {"enabled": True, "egressPorts": [9000]}, "monitoring": {"scrape": scrape}}
    one, two = (find(render(_S3 | values | more), "NetworkPolicy")["spec"] for more in ({}, _TWO))
    assert two["policyTypes"] == ["Ingress", "Egress"]
    assert two["ingress"] == [{"from": [{"podSelector": two["podSelector"]}]}, *metrics]
    assert two["egress"] == [{"to": [{"podSelector": two["podSelector"]}]}, *one["egress"]]


def test_metrics_say_whose_they_are() -> None:
    values = {"monitoring": {"scrape": "podMonitor"}}
    one, two = (find(render(values | more), "PodMonitor")["spec"]["podMetricsEndpoints"][0] for more in ({}, _TWO))
    assert two["relabelings"] == [
        {
            "sourceLabels": ["__meta_kubernetes_pod_label_batch_kubernetes_io_job_completion_index"],
            "targetLabel": "worker",
        }
    ]
    assert "relabelings" not in one


def test_the_test_pod_is_no_worker() -> None:
    pod = find(render(_TWO), "Pod")
    assert pod_spec(pod) | {"containers": 0} == pod_spec(find(render(), "Pod")) | {"containers": 0}
    assert {"TF_CONFIG", "WORKER_INDEX"}.isdisjoint(_env(pod))
    assert [port["name"] for port in pod_spec(pod)["containers"][0]["ports"]] == ["metrics"]


def test_workers_are_placement_and_replicas_decide() -> None:
    """As in `job/runs/identity.py`: 4 workers, 2 of 2 replicas, and 1 of 4 are one run; an id of one replica is as ever."""

    def limit(gpus: int | str) -> dict[str, Any]:
        return {"limits": {"nvidia.com/gpu": gpus}}

    four = [
        {"cluster": {"workers": 4}},
        {"cluster": {"workers": 2, "cpu_replicas": 2}},
        {"cluster": {"cpu_replicas": 4}},
        {"cluster": {"workers": 2}, "resources": limit(2)},
        {"cluster": {"workers": 2, "expected_gpus": 2, "cpu_replicas": 8}},
        {"cluster": {"workers": 1}, "resources": limit("4")},
        {
            "cluster": {"workers": 4, "peer_timeout_seconds": 20, "start_timeout_seconds": "60.5"},
            "resources": limit("0"),
        },
    ]
    assert len({run_id(render(values)) for values in four}) == 1
    ones: list[dict[str, Any]] = [{}, {"resources": limit(1)}, {"cluster": {"expected_gpus": 0}}]
    assert {run_id(render(values)) for values in ones} == {"ml.train-d3469bd4"}
    assert len({run_id(render({"cluster": {"workers": number}})) for number in (1, 2, 4)}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"persistence": {"accessModes": ["ReadWriteOncePod"]}},
            r"accessModes must not be ReadWriteOncePod with cluster\.workers=2.*ReadWriteMany.*store\.uri",
        ),
        (
            _S3 | {"persistence": {"cache": True, "accessModes": ["ReadWriteOncePod"]}},
            r"or store\.uri without persistence\.cache",
        ),
        (
            {"terminationGracePeriodSeconds": 39},
            r"at least 10 s more than cluster\.peer_timeout_seconds \(30\).*received 39; set it to 40",
        ),
        ({"cluster": {"workers": 2, "peer_timeout_seconds": "50.5"}}, r"received 60; set it to 61"),
        (
            {"activeDeadlineSeconds": 900},
            r"activeDeadlineSeconds \(900\) must be more than cluster\.start_timeout_seconds \(900\)",
        ),
        ({"observe": {"metrics_port": 2222}}, r"observe\.metrics_port must not be 2222"),
        (
            {"cluster": {"workers": 3}},
            r"global_batch_size \(128\) must be a multiple of the 3 replicas.* set it to 129",
        ),
        (
            {"train": {"global_batch_size": 4097}, "resources": {"limits": {"nvidia.com/gpu": 4}}},
            r"must be a multiple of the 8 replicas of 2 workers; set it to 4104",
        ),
        ({"extraEnv": [{"name": "A"}, {"name": "TF_CONFIG", "value": "{}"}]}, r"extraEnv must not set TF_CONFIG"),
        ({"extraEnv": [{"name": "WORKER_INDEX", "value": "0"}]}, r"extraEnv must not set WORKER_INDEX"),
    ],
)
def test_what_contradicts_several_workers_is_refused_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(_TWO | values)
    if values.get("cluster", {}).get("workers", 2) == 2:  # with one worker all of it is as it was
        assert render(values | {"cluster": {**values.get("cluster", {}), "workers": 1}, "train": {}})


@pytest.mark.parametrize(
    "values",
    [
        {"terminationGracePeriodSeconds": 40},
        {"activeDeadlineSeconds": 901},
        {"persistence": {"accessModes": ["ReadWriteOnce"]}},
        {"persistence": {"existingClaim": "mine"}},
        {"cluster": {"workers": 2, "start_timeout_seconds": 60}, "activeDeadlineSeconds": 300},
    ],
)
def test_what_just_fits_is_taken(values: dict[str, Any]) -> None:
    assert render(_TWO | values)


@pytest.mark.parametrize("workers", [0, 65, -1, 1.5, "two", "2", [2]])
def test_the_number_of_workers_is_a_whole_number_up_to_64(workers: object) -> None:
    with pytest.raises(RenderError, match="at '/cluster/workers'"):
        render({"cluster": {"workers": workers}})


def test_the_notes_say_how_to_see_the_workers_of_a_run() -> None:
    job = find(render(_TWO | _S3), "Job")["metadata"]["name"]
    said = notes(_TWO | _S3)
    assert "The run is 2 workers" in said
    assert f"mnist-k8s status -n ml {job}\n" in said
    assert f"logs -f -l batch.kubernetes.io/job-name={job},batch.kubernetes.io/job-completion-index=0\n" in said
    assert "Each run is 2 workers" in notes(_TWO | _S3 | _SCHEDULE)
    assert "workers" not in notes(_S3)
    assert "one node" not in said


@pytest.mark.parametrize(
    ("persistence", "is_said"),
    [
        ({}, "is ReadWriteOnce: all pods must land on one node"),
        ({"existingClaim": "mine"}, "unless it is ReadWriteMany, all pods must land on one node"),
        ({"accessModes": ["ReadWriteMany"]}, None),
    ],
)
def test_the_notes_say_when_a_volume_binds_workers_to_one_node(
    persistence: dict[str, Any], is_said: str | None
) -> None:
    said = notes(_TWO | {"persistence": persistence})
    assert is_said in said if is_said else "one node" not in said
    assert "must land on one node" not in notes({"persistence": persistence})


@pytest.mark.parametrize("version", ["1.31", "1.36", "1.37"])
@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_the_oldest_kubernetes_knows_every_field(file: Any, version: str) -> None:
    for manifest in render(files=(file,)):
        kubernetes_validate.validate(manifest, version, strict=True)
