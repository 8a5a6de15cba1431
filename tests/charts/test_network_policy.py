"""networkPolicy: what is open, and that no value opens more than it says."""

import json
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft7Validator

from tests.charts.helm import CHART, Manifest, RenderError, find, render, render_text

_SCHEMA = json.loads((CHART / "values.schema.json").read_text())
_PROMETHEUS = {
    "namespaceSelector": {"matchLabels": {"team": "watch"}},
    "podSelector": {"matchLabels": {"app": "prometheus"}},
}
_S3 = {
    "to": [{"podSelector": {"matchLabels": {"app": "s3"}}}],
    "ports": [{"port": 7070}, {"port": "http", "protocol": "TCP"}],
}


def _spec(values: dict[str, Any], **more: Any) -> Manifest:
    policy = find(render(values | {"networkPolicy": {"enabled": True, **more}}), "NetworkPolicy")
    kubernetes_validate.validate(policy, "1.37", strict=True)
    spec: Manifest = policy["spec"]
    return spec


def _is_valid(**policy: Any) -> bool:
    return bool(Draft7Validator(_SCHEMA).is_valid({"networkPolicy": policy}))


def test_every_rule_of_the_example_names_where_and_on_which_port() -> None:
    """Save DNS, which may be anywhere: a rule without `to` or without `ports` means all of them."""
    spec = find(render(files=(CHART / "ci" / "network-policy-values.yaml",)), "NetworkPolicy")["spec"]
    dns, *others = spec["egress"]
    assert [(port["port"], port["protocol"]) for port in dns["ports"]] == [
        (53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"),
    ]  # fmt: skip
    assert len(others) == 4
    assert all(rule["to"] and rule["ports"] for rule in others)
    assert all(rule["from"] and rule["ports"] for rule in spec["ingress"])


@pytest.mark.security("S2")
@pytest.mark.parametrize("name", ["egressCIDRs", "egressPorts", "dnsPorts"])
def test_an_empty_list_is_refused_in_each_spelling(name: str) -> None:
    """In a NetworkPolicy it would allow everything."""
    assert not _is_valid(**{name: []})
    assert not _is_valid(**{name: [None]})
    with pytest.raises(
        RenderError, match=rf"networkPolicy\.{name} must have at least one entry, received null.*leave it out"
    ):
        render_text({}, flags=("--set", "networkPolicy.enabled=true", "--set", f"networkPolicy.{name}=null"))


def test_without_a_policy_and_with_no_more_places_null_is_harmless() -> None:
    off = render_text({}, flags=("--set", "networkPolicy=null"))
    assert "NetworkPolicy" not in off
    assert _spec({}, extraEgress=None, ingressFrom=None) == _spec({})


def test_pods_and_a_metadata_server_may_be_reached_and_one_prometheus_may_come() -> None:
    metadata = {"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]}
    spec = _spec({"monitoring": {"scrape": "none"}}, extraEgress=[_S3, metadata], ingressFrom=[_PROMETHEUS])
    assert spec["egress"][-2:] == [_S3, metadata]
    assert spec["ingress"] == [{"ports": [{"port": 9090, "protocol": "TCP"}], "from": [_PROMETHEUS]}]


def test_several_workers_without_the_rest_of_the_policy_say_who_reads_their_metrics() -> None:
    values = {"cluster": {"workers": 2}, "networkPolicy": {"ingressFrom": [_PROMETHEUS]}}
    spec = find(render(values), "NetworkPolicy")["spec"]
    peers, metrics = spec["ingress"]
    assert peers == {"from": [{"podSelector": spec["podSelector"]}]}
    assert metrics["from"] == [_PROMETHEUS]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"networkPolicy": {"extraEgress": [_S3]}},
            r"extraEgress needs networkPolicy\.enabled=true, .* leave extraEgress out",
        ),
        ({"networkPolicy": {"ingressFrom": [_PROMETHEUS]}}, r"ingressFrom needs networkPolicy\.enabled=true"),
        (
            {"networkPolicy": {"enabled": True, "ingressFrom": [_PROMETHEUS]}, "observe": {"metrics_port": 0}},
            r"networkPolicy\.ingressFrom needs the port that observe\.metrics_port=0 .* leave one of them out",
        ),
    ],
)
def test_what_no_policy_would_use_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


@pytest.mark.security("S2")
def test_peers_and_ports_are_those_that_the_api_knows_and_never_all_of_them() -> None:
    def is_peer(peer: object) -> bool:
        return _is_valid(ingressFrom=[peer])

    assert is_peer(_PROMETHEUS)
    assert is_peer({"ipBlock": {"cidr": "fd00:ec2::254/128"}})
    assert is_peer({"namespaceSelector": {}})
    wrong: list[dict[str, object]] = [
        {},
        {"podSelector": None},
        {"ipBlock": {}},
        {"ipBlock": {"cidr": "10.1.2.3"}},
        {"pods": {}},
        {"podSelector": []},
    ]
    assert not any(is_peer(peer) for peer in wrong)
    assert not is_peer({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})  # the API server: one or the other

    def is_rule(rule: object) -> bool:
        return _is_valid(extraEgress=[rule])

    assert is_rule(_S3)
    for without in (
        {},
        {"to": _S3["to"]},
        {"ports": _S3["ports"]},
        _S3 | {"to": []},
        _S3 | {"ports": []},
        _S3 | {"from": []},
    ):
        assert not is_rule(without)
    for port in (
        {},
        {"port": 0},
        {"port": 65536},
        {"port": "9"},
        {"port": "a--b"},
        {"port": "s" * 16},
        {"port": 1, "protocol": "ICMP"},
    ):
        assert not is_rule(_S3 | {"ports": [port]})
    for name in ("http", "9p", "s3-api"):
        assert is_rule(_S3 | {"ports": [{"port": name}]})
