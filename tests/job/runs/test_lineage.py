"""What an attempt says of itself, and which part of that decides the bits of its steps."""

import json
from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from job.config import Config
from job.contract import Pod, pod_from_environment
from job.errors import ConfigError, IntegrityError
from job.runs import lineage
from job.runs.identity import AttemptIdentity
from job.runs.lineage import (
    Device,
    Lineage,
    bits_depend_on,
    checked_out_revision,
    compare_code,
    describe_attempt,
    make_attempt_id,
)
from tests.conftest import REPOSITORY

AVX2, AVX512 = ["avx", "avx2", "fma"], ["avx", "avx2", "fma", "avx512f"]
POD = Pod(uid="u-1", name="pod-1", job_name="job-1", release="release-1", image="image:1", chart_version="1.0.0")


@pytest.fixture(autouse=True)
def instruction_sets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the CPU that the test runs on, as it believes; a test may change the list."""
    names = list(AVX2)
    monkeypatch.setattr(lineage, "_instruction_sets", lambda: list(names))
    return names


def describe(
    pod: Pod = POD,
    *,
    attempt_id: str = "a",
    environ: dict[str, str] | None = None,
    names: tuple[str, ...] = ("/cpu:0",),
    threads: int = 4,
    compile_with: str = "xla",
) -> Lineage:
    device = Device(names=names, threads={"intra_op": threads, "inter_op": 2}, compile_with=compile_with)
    identity = AttemptIdentity(run="r", attempt=attempt_id)
    return describe_attempt(pod, identity, device=device, environ=environ or {}, config=Config())


class TestDescription:
    def test_attempt_is_described_with_its_place_and_its_devices(self) -> None:
        described = describe(environ={"ONEDNN_MAX_CPU_ISA": "AVX2", "SECRET": "canary"}).to_json()
        assert {name: described[name] for name in ("format", "run", "attempt", "pod", "image", "chart_version")} == {
            "format": 1,
            "run": "r",
            "attempt": "a",
            "pod": {"name": "pod-1", "job": "job-1", "release": "release-1"},
            "image": "image:1",
            "chart_version": "1.0.0",
        }
        assert described["devices"] == ["/cpu:0"]
        assert described["threads"] == {"intra_op": 4, "inter_op": 2}
        assert (described["compile"], described["onednn_max_cpu_isa"]) == ("xla", "AVX2")
        assert described["packages"]["keras"]
        assert "canary" not in str(described)

    def test_id_is_the_uid_of_the_pod_or_random(self) -> None:
        assert make_attempt_id(POD) == "u-1"
        assert make_attempt_id(Pod()) != make_attempt_id(Pod())
        with pytest.raises(ConfigError, match=r"^POD_UID: must be the pod's UID"):
            make_attempt_id(Pod(uid="../up"))

    def test_what_was_stored_is_read_again(self) -> None:
        described = describe()
        assert Lineage.of(json.loads(json.dumps(described.to_json()))) == described

    def test_record_of_an_older_version_lacks_what_no_bits_depend_on(self) -> None:
        record = describe().to_json()
        for name in ("chart_version", "revision", "pod", "image"):
            del record[name]
        assert bits_depend_on(Lineage.of(record)) == bits_depend_on(describe())
        del record["devices"]
        with pytest.raises(IntegrityError, match="the record of attempt 'a' lacks devices"):
            Lineage.of(record)

    def test_revision_is_that_of_this_checkout(self) -> None:
        """Found from the package's own folder: a module that moves must not lose it."""
        root = REPOSITORY
        if not (root / ".git").is_dir():
            pytest.skip("no checkout")
        assert describe(Pod()).revision == checked_out_revision(root)
        assert describe(Pod()).revision
        assert describe(Pod(revision="c0ffee")).revision == "c0ffee"


class TestCode:
    """What `run.skip_if_unchanged` compares."""

    @pytest.mark.parametrize(
        ("changed", "said", "unknown"),
        [
            ({}, "", ""),
            ({"image": "image:2"}, "image was 'image:2', is 'image:1'", ""),
            ({"revision": "1"}, "revision was '1', is 'c0ffee'", ""),
            ({"version": "0"}, "version was '0', is ", ""),
            ({"python": "3.0"}, "python was '3.0', is ", ""),
            ({"software": {"packages": "0" * 64}}, "other packages", ""),
            ({"software": {"system": "0" * 64}}, "other system", ""),
            ({"software": {"program": ""}}, "", "program"),
            ({"software": {"program": "", "packages": "0" * 64}}, "other packages", "program"),
        ],
    )
    def test_is_the_same_when_all_is_known_and_equal(self, changed: dict[str, Any], said: str, unknown: str) -> None:
        pod = replace(POD, revision="c0ffee")
        record = describe(pod).to_json()
        record |= changed | {"software": record["software"] | changed.get("software", {})}
        compared = compare_code(pod, record)
        assert compared.changed.startswith(said)
        assert (bool(compared.changed), compared.unknown) == (bool(said), unknown)
        assert compared.is_same == (not changed)

    def test_record_of_an_older_version_is_unknown(self) -> None:
        record = describe().to_json()
        del record["software"]
        assert compare_code(POD, record).unknown == "program, packages, system"
        assert compare_code(POD, {}).is_same is False

    def test_system_is_not_asked_where_the_image_is_named_by_its_digest(self) -> None:
        pod = replace(POD, image="image@sha256:1")
        record = describe(pod).to_json()
        record["software"] = record["software"] | {"system": ""}
        assert compare_code(pod, record).is_same

    @pytest.mark.parametrize("how", ["editable", "without a RECORD", "[]", "{", '{"dir_info": null}'])
    def test_package_whose_files_nobody_recorded_is_unknown(self, how: str, tmp_path: Path) -> None:
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        if how != "without a RECORD":
            (info / "RECORD").write_text("mine.pth,,\n")
            editable = '{"url": "file:///mine", "dir_info": {"editable": true}}'
            (info / "direct_url.json").write_text(editable if how == "editable" else how)
        assert lineage._digest_of_record(Distribution.at(info)) == ""
        (info / "direct_url.json").unlink(missing_ok=True)
        (info / "RECORD").write_text("mine/__init__.py,sha256=x,0\n")
        assert len(lineage._digest_of_record(Distribution.at(info))) == 64


class TestBits:
    def test_place_time_and_name_do_not_decide(self) -> None:
        other_pod = Pod(uid="u-2", name="on-other-node", job_name="j", release="r", image="image:2", chart_version="2")
        other = describe(other_pod, attempt_id="b", environ={"NODE_NAME": "node-2", "HOSTNAME": "other"})
        assert bits_depend_on(other) == bits_depend_on(describe())

    @pytest.mark.parametrize(
        ("before", "after"), [(None, "AVX2"), ("AVX2", None), ("AVX512_CORE", "AVX2")], ids=["set", "unset", "changed"]
    )
    def test_limit_of_onednn_decides(self, before: str | None, after: str | None) -> None:
        first, second = (
            bits_depend_on(describe(environ={"ONEDNN_MAX_CPU_ISA": value} if value else {}))
            for value in (before, after)
        )
        assert (first["onednn_max_cpu_isa"], second["onednn_max_cpu_isa"]) == (before, after)
        assert {name for name in first if first[name] != second[name]} == {"onednn_max_cpu_isa"}

    def test_instruction_sets_decide(self, instruction_sets: list[str]) -> None:
        before = bits_depend_on(describe(compile_with="graph"))
        instruction_sets.append("avx512f")
        after = bits_depend_on(describe(compile_with="graph"))
        assert {name for name in before if before[name] != after[name]} == {"instruction_sets"}

    def test_devices_decide(self) -> None:
        assert bits_depend_on(describe(names=("/cpu:0", "/cpu:1"))) != bits_depend_on(describe())

    @pytest.mark.parametrize("name", ["tensorflow", "tensorflow-cpu", "keras", "machine"])
    def test_versions_and_architecture_decide(self, name: str) -> None:
        described = describe()
        changed: dict[str, Any] = {"machine": "riscv64"}
        if name != "machine":
            changed = {"packages": {**described.packages, name: "99.0"}}
        assert bits_depend_on(replace(described, **changed)) != bits_depend_on(described)

    @pytest.mark.parametrize("name", ["numpy", "obstore", "safetensors", "tensorflow-datasets"])
    def test_packages_that_compute_no_step_do_not_decide(self, name: str) -> None:
        described = describe()
        changed = replace(described, packages={**described.packages, name: "99.0"})
        assert bits_depend_on(changed) == bits_depend_on(described)

    @pytest.mark.parametrize(
        ("compile_with", "found", "decides"),
        [
            ("xla", AVX2, True),
            ("xla", [], True),
            ("xla", AVX512, False),
            ("xla", ["avx512_bf16"], False),
            ("graph", AVX2, False),
            ("graph", AVX512, False),
        ],
    )
    def test_number_of_threads_decides_only_for_xla_without_avx512(
        self, compile_with: str, found: list[str], decides: bool, instruction_sets: list[str]
    ) -> None:
        instruction_sets[:] = found
        four, two = (bits_depend_on(describe(compile_with=compile_with, threads=number)) for number in (4, 2))
        assert (four != two) is decides
        assert ("intra_op_threads" in four) is decides


@pytest.mark.security("S10")
def test_facts_of_the_pod_hold_no_credentials() -> None:
    names = ("POD_NAME", "JOB_NAME", "RELEASE", "IMAGE", "CHART_VERSION", "REVISION")
    pod = pod_from_environment(dict.fromkeys(names, "https://me:pw1@registry/image") | {"POD_UID": "u-1"})
    assert "pw1" not in str(pod)
    assert pod.image == "https://***@registry/image"
    assert pod_from_environment({"RUN_ORIGIN": "schedule"}).origin == "schedule"
    for text in ("", "manual", "Schedule", "https://me:pw1@registry/image"):
        assert pod_from_environment({"RUN_ORIGIN": text}).origin == "manual"
    image = "registry:5000/mnist-train:1.2@sha256:0123456789abcdef"
    assert pod_from_environment({"IMAGE": image}).image == image
