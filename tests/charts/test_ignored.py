"""Values that nothing would read, and volumes that two runs cannot share: refused, or said, with the way out."""

from typing import Any

import pytest

from tests.charts.helm import RenderError, notes, render

_SCHEDULE = {"schedule": "0 3 * * *", "activeDeadlineSeconds": 7200}
_S3 = {"store": {"uri": "s3://b"}}
_IGNORED: list[tuple[dict[str, Any], str]] = [
    (
        _SCHEDULE | {"retry": 1},
        r"retry must not be set with a schedule, .*, received 1: set retry=0, and start a run with",
    ),
    (_SCHEDULE | {"run": {"suffix": "b"}}, r"run\.suffix must not be set with a schedule, .*: leave it out"),
    ({"run": {"id": "a", "suffix": "b"}}, r"run\.suffix must not be set with run\.id, .*: leave one of them out"),
    (
        {"timeZone": "Europe/Berlin"},
        r'timeZone needs a schedule, received "Europe/Berlin": set schedule, or leave it out',
    ),
    ({"concurrencyPolicy": "Allow"}, "concurrencyPolicy needs a schedule"),
    ({"startingDeadlineSeconds": 60}, "startingDeadlineSeconds needs a schedule, received 60"),
    (
        {"serviceAccount": {"create": False, "annotations": {"a": "b"}}},
        r'serviceAccount\.annotations needs serviceAccount\.create=true, received \{"a":"b"\}: annotate the ServiceAccount',
    ),
    (
        {"persistence": {"existingClaim": "c", "size": "1Gi"}},
        r"persistence\.size must not be set with persistence\.existingClaim",
    ),
    (
        {"persistence": {"existingClaim": "c", "storageClassName": "fast"}},
        r"persistence\.storageClassName must not be set with",
    ),
    (_S3 | {"persistence": {"size": "1Gi"}}, r"persistence\.size needs a PVC, .*: set persistence\.cache=true"),
    (_S3 | {"persistence": {"accessModes": ["ReadWriteMany"]}}, r"persistence\.accessModes needs a PVC"),
    ({"monitoring": {"interval": "30s"}}, r"monitoring\.interval needs monitoring\.scrape=podMonitor"),
    (
        {"monitoring": {"scrape": "none", "labels": {"a": "b"}}},
        r"monitoring\.labels needs monitoring\.scrape=podMonitor",
    ),
    (
        {"monitoring": {"rules": {"thresholds": {"failures": 3}}}},
        r"rules\.thresholds needs monitoring\.rules\.enabled=true",
    ),
    (
        {"monitoring": {"rules": {"severities": {"MnistTrainFailures": "none"}}}},
        r"rules\.severities needs monitoring\.rules",
    ),
    ({"networkPolicy": {"egressPorts": [9000]}}, r"networkPolicy\.egressPorts needs networkPolicy\.enabled=true"),
    ({"networkPolicy": {"dnsPorts": [5353]}}, r"networkPolicy\.dnsPorts needs networkPolicy\.enabled=true"),
    (
        {"networkPolicy": {"egressCIDRs": ["10.0.0.0/8"]}},
        r"networkPolicy\.egressCIDRs needs networkPolicy\.enabled=true",
    ),
    (
        {"clientRole": {"subjects": [{"kind": "User", "name": "a"}]}},
        r"clientRole\.subjects needs clientRole\.create=true",
    ),
    (
        {"monitoring": {"dashboard": {"annotations": {"grafana_folder": "Training"}}}},
        r"monitoring\.dashboard\.annotations needs monitoring\.dashboard\.enabled=true",
    ),
    ({"store": {"endpoint": "http://minio:9000"}}, r"store\.endpoint needs an object store, .*: set store\.uri=s3://"),
    (
        _S3 | {"store": {"uri": "s3://b", "account_name": "mine"}},
        r"store\.account_name needs store\.uri or data\.uri with az://",
    ),
    (_SCHEDULE | {"test": {"waitSeconds": 10}}, r"test\.waitSeconds must not be set with a schedule"),
    ({"persistence": {"existingClaim": "c", "bind": False}}, r"persistence\.bind must not be set with"),
    ({"store": {"path_style": False}}, r"store\.path_style needs an object store"),
]


@pytest.mark.parametrize(("values", "message"), _IGNORED)
def test_a_value_that_nothing_reads_is_refused_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


def test_defaults_said_again_and_values_that_something_reads_are_taken() -> None:
    said_again: dict[str, Any] = {
        "retry": 0,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 9,  # it counts for `kubectl create job --from`
        "run": {"id": "", "suffix": ""},
        "serviceAccount": {"create": False, "annotations": {}},
        "persistence": {"size": "5Gi", "storageClassName": None, "accessModes": ["ReadWriteOnce"]},
        "monitoring": {"interval": "15s", "labels": {}},
        "networkPolicy": {"egressPorts": [443], "egressCIDRs": ["0.0.0.0/0", "::/0"]},
        "store": {"uri": "s3://b", "endpoint": "http://minio:9000"},
        "image": {"repository": "r.example/m", "tag": "1", "digest": "sha256:" + "0" * 64},  # release tools write both
    }
    assert render(said_again)
    assert render({"data": {"source": "idx", "uri": "s3://b/x"}, "store": {"region": "eu-central-1"}})
    assert render(_S3 | {"persistence": {"cache": True, "size": "1Gi"}})


def test_two_runs_on_a_volume_of_one_pod_are_refused() -> None:
    pod = {"persistence": {"accessModes": ["ReadWriteOncePod"]}}
    with pytest.raises(
        RenderError, match=r"concurrencyPolicy must not be Allow with .*: set concurrencyPolicy=Forbid, "
    ):
        render(_SCHEDULE | pod | {"concurrencyPolicy": "Allow"})
    assert render(_SCHEDULE | pod | {"concurrencyPolicy": "Replace"})  # it starts when the pod before it has gone


def test_notes_say_which_runs_wait_for_the_volume() -> None:
    said = notes({})
    assert (
        "Only one node at a time can mount train-store (ReadWriteOnce). A second run (mnist-k8s submit, kubectl" in said
    )
    assert "persistence.accessModes={ReadWriteMany}, or keep all pods on one node (affinity.podAffinity)." in said
    assert "A second run (concurrencyPolicy=Allow, mnist-k8s submit" in notes(
        _SCHEDULE | {"concurrencyPolicy": "Allow"}
    )
    assert "Only one pod at a time" in notes({"persistence": {"accessModes": ["ReadWriteOncePod"]}})
    for values in (_S3, {"persistence": {"accessModes": ["ReadWriteMany"]}}, {"persistence": {"existingClaim": "c"}}):
        assert "at a time" not in notes(values)
