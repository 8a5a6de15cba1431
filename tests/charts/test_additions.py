"""What users add to the chart's objects: labels, annotations, containers, whole objects; where it lands, and what is refused."""

import base64
import json
import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator

from tests.charts.helm import (
    CHART,
    Manifest,
    RenderError,
    arguments,
    fields_of,
    find,
    job_spec,
    pod_spec,
    render,
    run_id,
)

_EVERYTHING: dict[str, Any] = {
    "cluster": {"workers": 2},
    "networkPolicy": {"enabled": True},
    "clientRole": {"create": True, "subjects": [{"kind": "User", "name": "ann"}]},
    "monitoring": {"scrape": "podMonitor", "rules": {"enabled": True}},
}
"""Each object that the chart can make."""
_KINDS = {
    *(
        "CronJob",
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "RoleBinding",
        "Service",
    ),
    "ServiceAccount",
}

_is_valid = Draft7Validator(json.loads((CHART / "values.schema.json").read_text())).is_valid


def _validate(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] not in ("PodMonitor", "PrometheusRule"):
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def _metadata(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Of every object, by its kind; and of the pods and Jobs that these make."""
    found = {each["kind"]: each["metadata"] for each in manifests}
    found["Job's pods"] = job_spec(find(manifests, "Job"))["template"]["metadata"]
    cron = find(manifests, "CronJob")
    found["CronJob's Jobs"] = cron["spec"]["jobTemplate"]["metadata"]
    found["CronJob's pods"] = job_spec(cron)["template"]["metadata"]
    return found


def _without_metadata(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_metadata(each) for each in node]
    if isinstance(node, dict):
        return {key: _without_metadata(each) for key, each in node.items() if key != "metadata"}
    return node


def test_common_labels_and_annotations_are_on_every_object_and_in_no_selector() -> None:
    common = {
        "commonLabels": {"team": "vision", "cost": "007"},
        "commonAnnotations": {"owner": "ann\n- b: c", "on": "true"},
    }
    before, after = render(_EVERYTHING), render(_EVERYTHING | common)
    _validate(after)
    assert {each["kind"] for each in after} == _KINDS
    for name, metadata in _metadata(after).items():
        old = _metadata(before)[name]
        assert metadata["labels"] == old["labels"] | common["commonLabels"], name
        assert metadata["annotations"] == old.get("annotations", {}) | common["commonAnnotations"], name
    assert _without_metadata(after) == _without_metadata(before)


def test_labels_of_fewer_objects_win_over_common_ones_and_the_charts_own_over_all() -> None:
    own = {"app.kubernetes.io/name": "mine", "app.kubernetes.io/instance": "mine", "app.kubernetes.io/managed-by": "me"}
    values = _EVERYTHING | {
        "commonLabels": own | {"team": "all"},
        "commonAnnotations": {"owner": "all", "helm.sh/resource-policy": "delete"},
        "jobLabels": own | {"team": "job"},
        "jobAnnotations": {"owner": "job"},
        "podLabels": {"team": ""},
        "podAnnotations": {"owner": "pod"},
        "monitoring": {
            "scrape": "podMonitor",
            "labels": {"team": "monitor"},
            "rules": {"enabled": True, "labels": {"team": "rules"}},
        },
        "persistence": {"labels": {"team": "volume"}, "annotations": {"owner": "volume"}},
        "serviceAccount": {"annotations": {"owner": "account"}},
    }
    manifests = render(values)
    _validate(manifests)
    found = _metadata(manifests)
    assert {each["labels"]["app.kubernetes.io/name"] for each in found.values()} == {"mnist-train"}
    assert {each["labels"]["app.kubernetes.io/instance"] for each in found.values()} == {"train"}
    teams = {name: each["labels"]["team"] for name, each in found.items()}
    jobs, pods = ("Job", "CronJob", "CronJob's Jobs"), ("Pod", "Job's pods", "CronJob's pods")
    special = (
        dict.fromkeys(jobs, "job")
        | dict.fromkeys(pods, "")
        | {"PodMonitor": "monitor", "PrometheusRule": "rules", "PersistentVolumeClaim": "volume"}
    )
    assert teams == dict.fromkeys(found, "all") | special
    owners = dict.fromkeys(jobs, "job") | dict.fromkeys(pods, "pod")
    owners |= {"PersistentVolumeClaim": "volume", "ServiceAccount": "account"}
    assert {name: each["annotations"]["owner"] for name, each in found.items()} == dict.fromkeys(found, "all") | owners
    assert found["PersistentVolumeClaim"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert found["Job"]["annotations"]["mnist-train/run"].startswith("ml.train-")


def test_labels_of_the_job_itself_make_no_other_job() -> None:
    """They can be changed in place, unlike those of its pods."""
    plain = find(render(), "Job")
    added = find(render({"jobLabels": {"a": "b"}, "jobAnnotations": {"a": "b"}}), "Job")
    assert (added["metadata"]["name"], added["spec"]) == (plain["metadata"]["name"], plain["spec"])
    assert find(render({"commonLabels": {"a": "b"}}), "Job")["metadata"]["name"] != plain["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "key", "way_out"),
    [
        ("jobLabels", "kueue.x-k8s.io/queue-name", "set queueName"),
        ("podLabels", "batch.kubernetes.io/job-name", "leave it out"),
        ("commonLabels", "controller-uid", "leave it out"),
        ("commonAnnotations", "helm.sh/hook", "leave it out"),
        ("persistence.annotations", "helm.sh/hook-weight", "leave it out"),
        ("jobAnnotations", "mnist-train/run", "leave it out"),
    ],
)
def test_keys_that_mean_something_to_the_cluster_are_refused(name: str, key: str, way_out: str) -> None:
    section, _, field = name.partition(".")
    with pytest.raises(RenderError, match=f"{name} must not hold {key}.*{way_out}"):
        render({section: {field: {key: "x"}} if field else {key: "x"}})


@pytest.mark.security("S2")
def test_common_annotations_do_not_turn_off_what_confines_a_pod() -> None:
    for key in ("container.apparmor.security.beta.kubernetes.io/train", "seccomp.security.alpha.kubernetes.io/pod"):
        with pytest.raises(RenderError, match="at '/commonAnnotations"):
            render({"commonAnnotations": {key: "unconfined"}})


def test_fields_of_the_pod_land_where_kubernetes_looks_for_them() -> None:
    fields: dict[str, Any] = {
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["10.1.2.3", "2001:db8::1"],
            "searches": ["a.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        },
        "hostAliases": [{"ip": "10.1.2.4", "hostnames": ["store.example", "b.example"]}],
        "schedulerName": "volcano",
    }
    context = {
        "supplementalGroups": [1000, 1001],
        "fsGroup": 2000,
        "fsGroupChangePolicy": "Always",
        "seLinuxOptions": {"level": "s0:c123,c456", "type": "container_t"},
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "training/strict"},
    }
    given = [{"configMapRef": {"name": "proxy"}}, {"prefix": "DB_", "secretRef": {"name": "keys", "optional": True}}]
    values = fields | {"podSecurityContext": context, "envFrom": given, "credentials": {"existingSecret": "store"}}
    manifests = render(values)
    _validate(manifests)
    for kind in ("Job", "CronJob", "Pod"):
        pod = pod_spec(find(manifests, kind))
        assert {name: pod[name] for name in fields} == fields
        assert pod["securityContext"] == context | {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "store"}}, *given]
        assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_linux_is_the_default_among_nodes_and_what_is_not_said_is_not_rendered() -> None:
    chosen = pod_spec(find(render({"nodeSelector": {"a": "b"}, "runAsUser": None}), "Job"))
    assert chosen["nodeSelector"] == {"kubernetes.io/os": "linux", "a": "b"}
    assert set(chosen["securityContext"]) == {"runAsNonRoot", "seccompProfile"}
    assert not {"dnsPolicy", "dnsConfig", "hostAliases", "schedulerName", "initContainers"} & set(chosen)
    assert "envFrom" not in chosen["containers"][0]
    kept = pod_spec(find(render({"runAsUser": None, "podSecurityContext": {"fsGroupChangePolicy": "Always"}}), "Job"))
    assert kept["securityContext"]["fsGroupChangePolicy"] == "Always"


_GPUS = (
    "nvidia.com/gpu",
    "nvidia.com/mig-1g.5gb",
    "nvidia.com/mig-1c.3g.20gb",
    "amd.com/gpu",
    "gpu.intel.com/i915",
    "gpu.intel.com/xe",
)


def test_the_limit_of_gpus_of_any_maker_is_what_the_job_expects() -> None:
    rendered = {name: render({"resources": {"limits": {name: "2"}}, "cluster": {"workers": 2}}) for name in _GPUS}
    assert [name for name in _GPUS if "--cluster.expected_gpus=2" not in arguments(find(rendered[name], "Job"))] == []
    assert len({run_id(manifests) for manifests in rendered.values()}) == 1
    with pytest.raises(RenderError, match=r"cluster\.expected_gpus \(1\) must equal the limit amd\.com/gpu \(2\)"):
        render({"resources": {"limits": {"amd.com/gpu": 2}}, "cluster": {"expected_gpus": 1}})


def test_gpus_of_two_kinds_are_refused_and_other_devices_are_none() -> None:
    with pytest.raises(
        RenderError, match=r"must have GPUs of one kind, received amd\.com/gpu and nvidia\.com/gpu: leave one"
    ):
        render({"resources": {"limits": {"nvidia.com/gpu": 1, "amd.com/gpu": 1}}})
    with pytest.raises(RenderError, match="GPUs of one kind"):
        render({"resources": {"limits": {"nvidia.com/mig-1g.5gb": 1, "nvidia.com/mig-2g.10gb": 1}}})
    limits = {"nvidia.com/gpu": 0, "amd.com/gpu": "0", "gpu.intel.com/i915_monitoring": 1, "example.com/gpu": 3}
    given = arguments(find(render({"resources": {"limits": limits}}), "Job"))
    assert not [argument for argument in given if "expected_gpus" in argument]


_HARDENED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
_PROXY: dict[str, Any] = {
    "name": "proxy",
    "image": "registry.example:5000/a/proxy:1.2@sha256:" + "0" * 64,
    "imagePullPolicy": "Always",
    "restartPolicy": "Always",
    "command": ["/proxy"],
    "args": ["--to={{ .Release.Name }}", "a\nb", "$(A)"],
    "env": [{"name": "A", "value": "b"}, {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    "envFrom": [{"secretRef": {"name": "keys"}}],
    "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "100m", "memory": "64Mi"}},
}


@pytest.mark.security("S2")
def test_init_containers_and_sidecars_are_confined_as_the_training_and_see_its_folders() -> None:
    mount = {"name": "socket", "mountPath": "/socket", "readOnly": True}
    values = {
        "initContainers": [{"name": "fetch", "image": "busybox:1"}, _PROXY | {"volumeMounts": [mount]}],
        "extraVolumes": [{"name": "socket", "emptyDir": {}}],
    }
    manifests = render(values)
    _validate(manifests)
    for kind in ("Job", "CronJob", "Pod"):
        pod = pod_spec(find(manifests, kind))
        own = pod["containers"][0]["volumeMounts"]
        assert [each["name"] for each in own] == ["tmp", "work", "data"]
        assert pod["initContainers"] == [
            {"name": "fetch", "image": "busybox:1", "securityContext": _HARDENED, "volumeMounts": own},
            _PROXY | {"securityContext": _HARDENED, "volumeMounts": [*own, mount]},
        ]


@pytest.mark.security("S2")
def test_an_init_container_has_no_field_but_those_that_the_chart_names() -> None:
    plain = {"name": "a", "image": "b"}
    assert _is_valid({"initContainers": [plain, _PROXY]})
    tried: list[Any] = [{}, [], True, "a", "Always", 1, {"privileged": True}]
    fields = {*plain, *fields_of("Container"), *fields_of("SecurityContext"), *fields_of("PodSpec")}
    allowed = {name for name in fields if any(_is_valid({"initContainers": [plain | {name: each}]}) for each in tried)}
    assert allowed == {"name", *_PROXY, "volumeMounts"}
    refused: list[dict[str, Any]] = [
        {"name": "train"},
        {"name": "A"},
        {"image": "a --privileged"},
        {"image": ""},
        {"restartPolicy": "Never"},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        {"resources": {"claims": []}},
        {"volumeMounts": [{"name": "v", "mountPath": "/proc"}]},
        {"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]},
        {"env": [{"name": "POD_UID", "value": "x"}]},
        {"args": ["\x00"]},
    ]
    assert not [each for each in refused if _is_valid({"initContainers": [plain | each]})]


@pytest.mark.security("S2")
def test_what_confines_a_pod_can_be_chosen_and_not_turned_off() -> None:
    refused: list[dict[str, Any]] = [
        *(
            {"appArmorProfile": each}
            for each in ({"type": "Unconfined"}, {"type": "Localhost"}, {"type": "unconfined"})
        ),
        {"appArmorProfile": {"type": "Localhost", "localhostProfile": "unconfined"}},
        {"appArmorProfile": {"type": "RuntimeDefault", "localhostProfile": "a"}},
        *({"seLinuxOptions": {name: "x"}} for name in ("user", "role")),
        *({"seLinuxOptions": {"type": each}} for each in ("spc_t", "unconfined_t", "")),
        *({"fsGroup": each} for each in (0, -1, "1")),
        {"supplementalGroups": [0]},
        *({name: each} for name in ("runAsUser", "runAsGroup") for each in (0, 1)),
        *({"runAsNonRoot": False}, {"seccompProfile": {"type": "Unconfined"}}, {"sysctls": []}, {"windowsOptions": {}}),
    ]
    assert not [each for each in refused if _is_valid({"podSecurityContext": each})]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dnsPolicy": "None"}, r"dnsPolicy=None needs the servers to ask: set dnsConfig\.nameservers"),
        ({"dnsPolicy": "Default", "cluster": {"workers": 2}}, "dnsPolicy must not be Default with several workers"),
        (
            {"hostAliases": [{"ip": "::1", "hostnames": ["a"]}, {"ip": "::1", "hostnames": ["b"]}]},
            'hostAliases must not have two entries with the ip "::1"',
        ),
        (
            {"initContainers": [{"name": "a", "image": "b"}] * 2},
            'initContainers must not have two entries with the name "a"',
        ),
        (
            {"initContainers": [{"name": "a", "image": "b", "env": [{"name": "A"}, {"name": "A"}]}]},
            r'initContainers\[0\]\.env must not have two entries with the name "A"',
        ),
        (
            {"initContainers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]},
            r'initContainers\[0\]\.volumeMounts must name a volume of extraVolumes, received "x"; there are tmp, work, data',
        ),
        (
            {"initContainers": [_PROXY | {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}]},
            r"initContainers\[0\]\.resources\.requests\.cpu must be at most resources\.limits\.cpu \(1\), received 2",
        ),
        (
            {"monitoring": {"honorLabels": True}},
            r"honorLabels needs monitoring\.scrape=podMonitor, received true: set that, or leave it out",
        ),
        (
            {"monitoring": {"podTargetLabels": ["a"]}},
            r"monitoring\.podTargetLabels needs monitoring\.scrape=podMonitor",
        ),
    ],
)
def test_what_could_not_work_is_refused_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


def test_a_pod_monitor_takes_relabelings_after_those_of_the_chart() -> None:
    drop = {"sourceLabels": ["__name__"], "regex": "python_.*", "action": "drop"}
    values = {
        "scrape": "podMonitor",
        "honorLabels": True,
        "relabelings": [{"targetLabel": "cluster", "replacement": "berlin"}],
        "metricRelabelings": [drop],
        "podTargetLabels": ["team"],
    }
    spec = find(render({"monitoring": values, "cluster": {"workers": 2}}), "PodMonitor")["spec"]
    [endpoint] = spec["podMetricsEndpoints"]
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["worker", "cluster"]
    assert (endpoint["honorLabels"], endpoint["metricRelabelings"], spec["podTargetLabels"]) == (True, [drop], ["team"])
    plain = find(render({"monitoring": {"scrape": "podMonitor"}}), "PodMonitor")["spec"]
    assert not {"honorLabels", "relabelings", "metricRelabelings"} & set(plain["podMetricsEndpoints"][0])


def _config_map(**changes: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}, "data": {"a": "b"}} | changes


@pytest.mark.security("S1")
def test_extra_objects_are_applied_as_written_and_no_text_in_them_is_a_template() -> None:
    hostile = "{{ .Release.Name }}\n---\nkind: Pod\n# <&> \"' $(A) \u00e4"
    own = {"name": "more", "labels": {"team": "mine"}, "annotations": {"x": hostile}}
    secret = {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ExternalSecret",
        "metadata": {"name": "keys"},
        "spec": {
            "a: b": hostile,
            "number": 1_000_000,
            "part": 0.5,
            "flag": False,
            "none": None,
            "list": [[], {}, hostile],
        },
    }
    config = _config_map(metadata=own, data={"file.py": hostile, "1": "true"})
    manifests = render({"extraObjects": [config, secret], "commonLabels": {"team": "all", "cost": "1"}})
    kubernetes_validate.validate(find(manifests, "ConfigMap"), "1.37", strict=True)
    labels = {"team": "mine", "cost": "1"}
    assert find(manifests, "ConfigMap") == config | {"metadata": own | {"namespace": "ml", "labels": labels}}
    metadata = {"name": "keys", "namespace": "ml", "labels": {"team": "all", "cost": "1"}}
    assert find(manifests, "ExternalSecret") == secret | {"metadata": metadata}


def _extra(api: str, kind: str, name: str = "more") -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}}


@pytest.mark.security("S2")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        *(
            ([_extra(api, kind)], rf"extraObjects\[0\] must be a ConfigMap, .* received {api} {kind}: install it apart")
            for api, kind in (
                ("v1", "Pod"),
                ("v1", "Secret"),
                ("v1", "List"),
                ("apps/v1", "Deployment"),
                ("batch/v1", "Job"),
                ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
                ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
                ("some.k8s.io/v1beta1", "Whatever"),
            )
        ),
        ([_extra("a.example/v1", "Foo") | {"items": []}], r"extraObjects\[0\] must be one object, received a list"),
        (
            [_config_map(), _config_map()],
            r"extraObjects\[1\] must not be another ConfigMap more of this release: take another",
        ),
        (
            [_extra("networking.k8s.io/v1", "NetworkPolicy", "train")],
            "must not be another NetworkPolicy train of this release",
        ),
        (
            [_extra("v1", "PersistentVolumeClaim", "train-store")],
            "must not be another PersistentVolumeClaim train-store",
        ),
        ([_extra("monitoring.coreos.com/v1", "PodMonitor", "train")], "must not be another PodMonitor train"),
        (
            [_config_map(metadata={"name": "a", "namespace": "other"})],
            r"extraObjects\[0\]\.metadata\.namespace must be that of the release \(ml\), received other: leave it out",
        ),
    ],
)
def test_an_extra_object_brings_no_pods_and_no_rights_of_kubernetes_itself(extra: list[Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render({"extraObjects": extra})


def test_what_the_schema_refuses_of_names_addresses_and_objects() -> None:
    refused: list[dict[str, Any]] = [
        {"dnsPolicy": "ClusterFirstWithHostNet"},
        *(
            {"hostAliases": [{"ip": each, "hostnames": ["a"]}]}
            for each in ("10.1.2.300", "10.1.2.03", "10.1.2.3/8", "1::2::3", "a")
        ),
        {"hostAliases": [{"ip": "10.1.2.3", "hostnames": []}]},
        {"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]},
        *(
            {"envFrom": [{"prefix": each, "secretRef": {"name": "a"}}]}
            for each in ("MNIST_", "MNIST_RUN_", "M", "MNIST", "1", "A=")
        ),
        {"extraObjects": [_config_map(metadata={"name": "a", "finalizers": ["x"]})]},
        {"extraObjects": [_config_map(metadata={"name": "A b"})]},
        *({"extraObjects": [_config_map(data={"a": [each]})]} for each in ("\x85", "\x00", "\u2028", "\ufeff")),
        {"extraObjects": [_config_map(data={"a\nb": "c"})]},
        *(
            {"extraObjects": [_config_map(apiVersion=each)]}
            for each in ("RBAC.authorization.k8s.io/v1", "a./v1", "v1 ", "a/b/v1")
        ),
        {"extraObjects": ["a: b"]},
    ]
    assert [each for each in refused if _is_valid(each)] == []
    fine = {
        "hostAliases": [{"ip": "fe80::1", "hostnames": ["a"]}],
        "envFrom": [{"prefix": "MY_", "secretRef": {"name": "a"}}],
    }
    assert _is_valid(fine | {"extraObjects": [_config_map()]})


def test_a_catalogue_of_charts_finds_licence_category_changes_and_an_icon_without_a_host() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    head, _, icon = chart["icon"].partition(",")
    assert (head, base64.b64decode(icon)) == ("data:image/svg+xml;base64", (CHART / "icon.svg").read_bytes())
    annotations = {name.removeprefix("artifacthub.io/"): text for name, text in chart["annotations"].items()}
    assert (
        annotations["license"] == tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["license"]
    )
    assert annotations["category"] == "ai-machine-learning"
    changes = yaml.safe_load(annotations["changes"])
    assert {each["kind"] for each in changes} <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(each["description"] for each in changes)
    assert "http" not in json.dumps(
        {name: chart[name] for name in chart if name != "icon"}
    )  # there is no public address yet


def test_a_value_that_is_null_is_not_set() -> None:
    names = (
        "commonLabels",
        "commonAnnotations",
        "jobLabels",
        "jobAnnotations",
        "podSecurityContext",
        "envFrom",
        "dnsConfig",
    )
    more = ("dnsPolicy", "hostAliases", "schedulerName", "initContainers", "extraObjects")
    parts = {"persistence": ("labels", "annotations"), "monitoring": ("relabelings", "honorLabels", "podTargetLabels")}
    nulls = dict.fromkeys(names + more) | {section: dict.fromkeys(fields) for section, fields in parts.items()}
    assert render(nulls) == render()
    with pytest.raises(RenderError, match=r"set dnsConfig\.nameservers"):
        render(nulls | {"dnsPolicy": "None"})
