"""What the chart refuses, by schema or by its own checks, and that it says what to do."""

from typing import Any

import pytest

from tests.charts.helm import RenderError, render

_SCHEDULE = {"schedule": "0 3 * * *", "activeDeadlineSeconds": 7200}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": ""}}, r"image\.repository must name your image: .*scripts/image"),
        ({"schedule": "0 3 * * *"}, r"activeDeadlineSeconds must be set with a schedule.*--set activeDeadlineSeconds"),
        (_SCHEDULE | {"run": {"id": "mine"}}, r"run\.id must not be set with a schedule"),
        (_SCHEDULE | {"schedule": "99 * * * *"}, "schedule must be five fields"),
        (_SCHEDULE | {"schedule": "0 3 * *"}, "schedule must be five fields"),
        (_SCHEDULE | {"schedule": "0 24 * * *"}, "schedule must be five fields"),
        (_SCHEDULE | {"schedule": "TZ=UTC 0 3 * * *"}, "a time zone goes into timeZone"),
        (_SCHEDULE | {"schedule": "@every 5m"}, "schedule must be five fields"),
        ({"store": {"uri": "file:/tmp/out"}}, r"store\.uri must not be a folder inside the pod"),
        (
            {"store": {"uri": "s3://b"}, "persistence": {"existingClaim": "mine"}},
            r"persistence\.existingClaim is not used with store\.uri: set persistence\.cache=true",
        ),
        ({"terminationGracePeriodSeconds": 25}, r"at least 10 s more than checkpoint\.final_save_seconds \(20\).* 30"),
        ({"checkpoint": {"final_save_seconds": 55}}, r"terminationGracePeriodSeconds must .* set it to 65"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 2}}, "cluster": {"expected_gpus": 1}},
            r"cluster\.expected_gpus \(1\) must equal the limit nvidia\.com/gpu \(2\)",
        ),
        (
            {"monitoring": {"scrape": "podMonitor"}, "observe": {"metrics_port": 0}},
            r"monitoring\.scrape=podMonitor needs the port that observe\.metrics_port=0 or a loopback observe\.metrics_address",
        ),
        (
            {"monitoring": {"scrape": "podMonitor"}, "observe": {"metrics_address": "127.0.0.1"}},
            r"monitoring\.scrape=podMonitor needs the port that .* a loopback observe\.metrics_address takes away",
        ),
    ],
)
def test_contradictions_are_refused_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bogus": 1}, "additional properties 'bogus' not allowed"),
        ({"train": {"epochz": 3}}, "at '/train': additional properties 'epochz' not allowed"),
        ({"train": {"epochs": "three"}}, "at '/train/epochs': got string, want integer"),
        ({"train": {"epochs": 0}}, "at '/train/epochs'"),
        ({"train": {"optimizer": "ftrl"}}, "at '/train/optimizer'"),
        ({"train": []}, "at '/train'"),
        ({"run": {"seed": "dice"}}, "at '/run/seed'"),
        ({"model": {"hidden_units": [0]}}, "at '/model/hidden_units/0'"),
        ({"image": {"tag": "latest; rm"}}, "at '/image/tag'"),
        ({"image": {"digest": "sha256:short"}}, "at '/image/digest'"),
        ({"timeZone": "Europe/../../etc"}, "at '/timeZone'"),
        ({"concurrencyPolicy": "Maybe"}, "at '/concurrencyPolicy'"),
        ({"backoffLimit": -1}, "at '/backoffLimit'"),
        ({"monitoring": {"scrape": "maybe"}}, "at '/monitoring/scrape'"),
        ({"monitoring": {"interval": "15"}}, "at '/monitoring/interval'"),
        ({"extraEnv": [{"name": "POD_NAMESPACE", "value": "x"}]}, "at '/extraEnv/0/name'"),
        ({"clusterName": "Two Words"}, "at '/clusterName'"),
        ({"persistence": {"size": "big"}}, "at '/persistence/size'"),
        ({"resources": {"claims": []}}, "additional properties 'claims' not allowed"),
        ({"networkPolicy": {"egressCIDRs": ["everywhere"]}}, "at '/networkPolicy/egressCIDRs/0'"),
        ({"startingDeadlineSeconds": 5}, "at '/startingDeadlineSeconds'"),  # below 10 it may never start
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"securityContext": {"privileged": True}},
        {"podSecurityContext": {"runAsUser": 0}},
        {"runAsUser": 0},
        {"hostNetwork": True},
        {"hostPID": True},
        {"automountServiceAccountToken": True},
        {"serviceAccount": {"automount": True}},
        {"extraVolumes": [{"name": "host", "hostPath": {"path": "/"}}]},
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        {"extraVolumeMounts": [{"name": "x", "mountPath": "/work"}]},
        {"extraContainers": [{"name": "x", "image": "y"}]},
        {"initContainers": []},
        {"extraEnv": [{"name": "POD_UID", "value": "another"}]},
        {"extraEnv": [{"name": "A", "value": "b", "privileged": True}]},
        {"command": ["sh"]},
        {"image": {"repository": "evil --privileged"}},
    ],
)
def test_more_rights_cannot_be_asked_for(values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
        render(values)


def test_global_values_of_a_parent_chart_are_allowed() -> None:
    assert render({"global": {"anything": {"goes": True}}})
