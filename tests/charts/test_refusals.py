"""What the chart refuses, by schema or by its own checks, and that it says what to do."""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.charts.helm import CHART, RenderError, fields_of, render

_SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
_BOTH = {
    "weight": 1,
    "podAffinityTerm": {
        **{"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}},
        **{"matchLabelKeys": ["k"], "mismatchLabelKeys": ["k"]},
    },
}
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
        (_SCHEDULE | {"schedule": "5-1 * * * *"}, "schedule must be five fields"),
        (_SCHEDULE | {"schedule": "0 3 * * FRI-mon"}, "schedule must be five fields"),
        (_SCHEDULE | {"schedule": "TZ=UTC 0 3 * * *"}, "a time zone goes into timeZone"),
        (_SCHEDULE | {"schedule": "@every 5m"}, "schedule must be five fields"),
        ({"store": {"uri": "file:/tmp/out"}}, r"store\.uri must not be a folder inside the pod"),
        (
            {"store": {"uri": "s3://b"}, "persistence": {"existingClaim": "mine"}},
            r"persistence\.existingClaim is not used with store\.uri: set persistence\.cache=true",
        ),
        (
            {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_BOTH]}}},
            r"affinity\.podAntiAffinity must not have a key in matchLabelKeys and in mismatchLabelKeys, received k in both",
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
        ({"observe": {"metrics_address": "::ffff:127.0.0.1"}}, "at '/observe/metrics_address'"),
        ({"observe": {"metrics_address": "0::FFFF:7f00:1"}}, "at '/observe/metrics_address'"),
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
        ({"train": {"epochs": "three"}}, "at '/train/epochs': got string, want null or integer"),
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
        ({"extraEnv": [{"name": "A"}, {"name": "MNIST_TRAIN__EPOCHS", "value": "3"}]}, "at '/extraEnv/1/name'"),
        ({"extraEnv": [{"name": "mnist_model__dropout", "value": "0.5"}]}, "at '/extraEnv/0/name'"),
        ({"resources": {"limits": {"nvidia.com/gpu": 0.5}}}, "at '/resources/limits/nvidia.com~1gpu'"),
        ({"resources": {"limits": {"nvidia.com/gpu": "500m"}}}, "at '/resources/limits/nvidia.com~1gpu'"),
        ({"tolerations": [{"key": "a", "operator": "Exist"}]}, "at '/tolerations/0/operator'"),
        ({"tolerations": [{"key": "a", "efect": "NoSchedule"}]}, "additional properties 'efect' not allowed"),
        ({"clusterName": "Two Words"}, "at '/clusterName'"),
        ({"persistence": {"size": "big"}}, "at '/persistence/size'"),
        ({"resources": {"claims": []}}, "additional properties 'claims' not allowed"),
        ({"networkPolicy": {"egressCIDRs": ["everywhere"]}}, "at '/networkPolicy/egressCIDRs/0'"),
        ({"resources": {"limits": {"hugepages-2Mi": "3Mi"}}}, "at '/resources/limits/hugepages-2Mi'"),
        ({"resources": {"limits": {"hugepages-79053Ki": "1Gi"}}}, "at '/resources/limits'"),
        ({"startingDeadlineSeconds": 5}, "at '/startingDeadlineSeconds'"),  # below 10 it may never start
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


@pytest.mark.security("S2")
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
        {"extraEnv": [{"name": "POD_UID", "value": "another"}]},
        {"extraEnv": [{"name": "A", "value": "b", "privileged": True}]},
        {"command": ["sh"]},
        {"image": {"repository": "evil --privileged"}},
        {"extraVolumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
        {"podAnnotations": {"container.apparmor.security.beta.kubernetes.io/train": "unconfined"}},
        {"clientRole": {"create": True, "subjects": [{"kind": "Group", "name": "system:authenticated"}]}},
        {"clientRole": {"create": True, "subjects": [{"kind": "User", "name": "system:anonymous"}]}},
        {"clientRole": {"create": True, "subjects": [{"kind": "Group", "name": "system:serviceaccounts"}]}},
        {"podAnnotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}},
        {"podAnnotations": {"container.seccomp.security.alpha.kubernetes.io/train": "unconfined"}},
    ],
)
def test_more_rights_cannot_be_asked_for(values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
        render(values)


@pytest.mark.security("S2")
def test_a_mount_hides_nothing_of_the_chart_or_of_the_system() -> None:
    """Nor does another spelling of such a place."""
    is_valid = Draft7Validator(_SCHEMA).is_valid

    def is_taken(path: str) -> bool:
        return bool(is_valid({"extraVolumeMounts": [{"name": "v", "mountPath": path}]}))

    own = ("/tmp", "/tmp/", "//work", "/x/../tmp", "/./data", "/data/.", "/work/..", "/", "//", "tmp", "/x//y", "")
    system = (
        "/proc",
        "/proc/self",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/termination-log",
        "/dev/shm/..",
        "/dev/shm/",
    )
    token = ("/var/run/secrets/kubernetes.io/serviceaccount", "/run/secrets/kubernetes.io")
    assert not [path for path in (*own, *system, *token) if is_taken(path)]
    fine = ("/etc/own-ca", "/tmp/cache", "/dev/shm", "/x/...", "/x/.y", "/process", "/device", "/var/run/secrets/azure")
    assert [path for path in fine if is_taken(path)] == list(fine)


@pytest.mark.security("S10")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.args", {"url": "postgresql://user:pw@host/db"}),
        ("model.args", {"deep": [{"url": "https://user:a/b@host"}]}),
        ("model.args", {"url": "https://host/x?a=1&X-Amz-Signature=abc"}),
        ("data.cache_dir", "/x//user:pw@host"),
        ("store.region", "https://user@host"),
    ],
)
def test_settings_with_credentials_are_refused_before_they_are_in_a_manifest(name: str, value: object) -> None:
    section, _, field = name.partition(".")
    values: dict[str, Any] = {"data": {"source": "a:b", "uri": "file:/d"}, "model": {"build": "a:b"}}
    values[section] = values.get(section, {}) | {field: value}
    with pytest.raises(RenderError, match=rf"{section}\.{field} must hold no credentials") as refused:
        render(values)
    assert "pw@" not in str(refused.value)


def test_settings_without_credentials_may_look_a_bit_like_them() -> None:
    fine = {
        "image": "//registry.example:5000/a@sha256:abc",
        "mail": "a@b.c",
        "url": "https://host/a@b?x=1",
        "key": "a=b",
    }
    assert render({"data": {"source": "a:b", "args": fine}})


_SCHEMA = json.loads((CHART / "values.schema.json").read_text())
_TOKEN = {"serviceAccountToken": {"path": "t", "audience": "https://kubernetes.default.svc"}}


@pytest.mark.security("S2")
def test_no_field_of_a_pod_can_be_set_but_those_that_the_chart_names() -> None:
    """Each field of Kubernetes' own schema, as a value, in extraEnv, in extraVolumes, in a mount and in resources."""
    is_valid = Draft7Validator(_SCHEMA).is_valid
    of_pod = {
        name for kind in ("PodSpec", "Container", "SecurityContext", "PodSecurityContext") for name in fields_of(kind)
    }
    tried: list[Any] = [{}, [], True, "x", 1]
    given = {name for name in of_pod if any(is_valid({name: value}) for value in tried)}
    assert given == {
        *("activeDeadlineSeconds", "affinity", "image", "imagePullSecrets", "nodeSelector", "priorityClassName"),
        *("resources", "runAsUser", "runtimeClassName", "serviceAccount", "terminationGracePeriodSeconds"),
        *("tolerations", "topologySpreadConstraints", "dnsConfig", "envFrom", "hostAliases", "initContainers"),
        "schedulerName",
    }
    assert not is_valid({"runAsUser": 0})
    kinds = set(_SCHEMA["properties"]["extraVolumes"]["items"]["properties"])
    for name in fields_of("Volume") - kinds:
        assert not is_valid({"extraVolumes": [{"name": "v", name: {}}]}), name
    for name in fields_of("Container") | fields_of("SecurityContext"):
        assert name == "name" or not is_valid({"extraEnv": [{"name": "A", name: {}}]}), name
        assert not is_valid({"resources": {name: {}}}), name
    for name in fields_of("VolumeMount") - {"name", "mountPath", "subPath", "readOnly"}:
        assert not is_valid({"extraVolumeMounts": [{"name": "v", "mountPath": "/v", name: "x"}]}), name
    assert {"hostPath", "nfs", "image"} <= fields_of("Volume") - kinds
    assert not is_valid({"extraVolumes": [{"name": "v", "projected": {"sources": [_TOKEN]}}]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
            'extraEnv must not have two .* name "A"',
        ),
        (
            {"extraVolumeMounts": [{"name": "none", "mountPath": "/x"}]},
            'must name a volume .* received "none"; there are tmp, ',
        ),
        ({"resources": {"requests": {"cpu": "5"}}}, r"resources\.requests\.cpu must be at most resources\.limits\.cpu"),
        ({"resources": {"requests": {"memory": 9_000_000_000_000}}}, r"requests\.memory must be at most"),
        (
            {"resources": {"requests": {"example.com/x": 1}}},
            r"needs a limit of the same: set resources\.limits\.example\.com/x to 1",
        ),
        ({"topologySpreadConstraints": [_SPREAD, _SPREAD]}, "must not have two entries for zone ScheduleAnyway"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_before(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


def test_global_values_of_a_parent_chart_are_allowed() -> None:
    assert render({"global": {"anything": {"goes": True}}})
