"""scripts/release: what it refuses, what it writes, and that the same commit gives the same files."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from generators import version as followers
from releasing import bill, checks, cut, provenance, push
from releasing.build import Image, Source
from releasing.tools import ReleaseError

from tests.conftest import REPOSITORY, skip_or_fail

_CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n- Something.\n\n## [0.9.0] - 2026-01-01\n\n- Older.\n"
_DPKG = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12+deb13u2
Description: GNU C Library
 of several lines

Package: gone
Status: deinstall ok config-files
Version: 1

Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.3.dfsg+really1.3.1-1+b1
"""


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of the files that name the version."""
    for name in ("pyproject.toml", *followers.make_files(REPOSITORY)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(_CHANGELOG)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_the_version_is_said_once_and_every_file_follows(project: Path) -> None:
    cut.write_version(project, "9.8.7-rc.1")
    chart = yaml.safe_load((project / "charts/mnist-train/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("9.8.7-rc.1", "9.8.7-rc.1")
    gpu = yaml.safe_load((project / "charts/mnist-train/ci/gpu-values.yaml").read_text())
    assert gpu["image"]["tag"] == "9.8.7-rc.1-gpu"
    assert '__version__ = "9.8.7-rc.1"' in (project / "job/__init__.py").read_text()
    assert "ARG VERSION=9.8.7-rc.1\n" in (project / "Dockerfile").read_text()
    assert 'name = "mnist-train"\nversion = "9.8.7-rc.1"\n' in (project / "uv.lock").read_text()
    assert cut.write_version(project, "9.8.7-rc.1") == [project / "pyproject.toml"]
    changed = _git(project, "diff", "--numstat").splitlines()
    times = {name: added for added, removed, name in (line.split("\t") for line in changed) if added == removed}
    more = {"charts/mnist-train/Chart.yaml": times.get("charts/mnist-train/Chart.yaml"), "docs/gitops.md": "2"}
    more |= {"charts/mnist-train/README.md": "3"}
    assert times == dict.fromkeys(["pyproject.toml", *followers.make_files(REPOSITORY)], "1") | more
    assert "0.1.0" not in (project / "charts/mnist-train/README.md").read_text()


def test_a_file_that_no_longer_names_the_version_is_named(project: Path) -> None:
    (project / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ValueError, match=r"Dockerfile: must name the version"):
        followers.make_files(project)


def test_the_changelog_is_cut() -> None:
    assert cut.cut_changelog(_CHANGELOG, "0.10.0", "2026-02-03") == _CHANGELOG.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [0.10.0] - 2026-02-03\n"
    )
    assert cut.released_versions(cut.cut_changelog(_CHANGELOG, "0.10.0", "2026-02-03")) == ["0.10.0", "0.9.0"]


@pytest.mark.parametrize(
    ("text", "version", "reason"),
    [
        (_CHANGELOG, "0.9.0", "VERSION must be newer than 0.9.0"),
        (_CHANGELOG, "0.9.0-rc.1", "VERSION must be newer than 0.9.0"),
        (_CHANGELOG.replace("- Something.\n", ""), "1.0.0", "found nothing below"),
        ("# Changelog\n", "1.0.0", "must have the heading"),
    ],
)
def test_a_cut_that_says_nothing_new_is_refused(text: str, version: str, reason: str) -> None:
    with pytest.raises(ReleaseError, match=reason):
        cut.cut_changelog(text, version, "2026-02-03")


@pytest.mark.parametrize(
    "version", ["v1.2.3", "1.2", "1.2.3.4", "1.02.3", "1.2.3+build", "1.2.3-beta", "1.2.3\n", "", "$(x)"]
)
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(ReleaseError, match=r"VERSION must be like 1\.2\.3"):
        cut.check_version(version)


def test_all_that_keeps_a_commit_from_being_released_is_said_at_once(project: Path) -> None:
    (project / "job" / "new.py").write_text("")
    said = "\n".join(checks.find_refusals(project, "9.9.9"))
    assert "the tree must be clean, found 1 changed files such as job/new.py" in said
    assert "the commit must have the tag v9.9.9, found no such tag" in said
    assert f"pyproject.toml must have the version 9.9.9, found {followers.read_version(project)}" in said
    assert "CHANGELOG.md must have a section `## [9.9.9] - DATE`" in said

    (project / "job" / "new.py").unlink()
    cut.write_version(project, "9.9.9")
    cut.write_changelog(project, "9.9.9", "2026-02-03")
    _git(project, "commit", "--quiet", "-a", "-m", "release")
    _git(project, "tag", "v9.9.9", "HEAD~")
    assert [each[:37] for each in checks.find_refusals(project, "9.9.9")] == ["the tag v9.9.9 must be the checked-ou"]
    _git(project, "tag", "--force", "-a", "-m", "annotated", "v9.9.9")
    assert checks.find_refusals(project, "9.9.9") == []

    chart = project / "charts/mnist-train/Chart.yaml"
    chart.write_text(chart.read_text().replace("appVersion: 9.9.9", "appVersion: 9.9.8"))
    assert "Chart.yaml must have the version of pyproject.toml" in checks.find_refusals(project, "9.9.9")[1]


def test_a_base_image_by_tag_and_a_key_that_is_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSIGN_KEY", "/absent/cosign.key")
    base, key = checks.find_missing("registry.example", "debian:trixie-slim")
    assert base.startswith("the base image must be named by digest, found debian:trixie-slim")
    assert key.startswith("COSIGN_KEY must name a key of cosign, found no file /absent/cosign.key")
    monkeypatch.setenv("COSIGN_KEY", "awskms:///alias/releases")
    assert list(checks.find_missing("localhost:5000/team/a-b", "debian@sha256:" + "0" * 64)) == []


@pytest.mark.parametrize(
    "registry", ["", "https://h", "oci://h/x", "h/X", "h:port", "h/x:1", "h//x", "h/", "h x", "u@h"]
)
def test_a_place_that_no_image_can_be_pushed_to_is_refused(registry: str) -> None:
    [said] = checks.find_missing(registry, "debian@sha256:" + "0" * 64)
    assert said.startswith("--registry must be HOST[:PORT][/PATH] in small letters, received ")


@pytest.mark.parametrize(
    ("known", "flags"),
    [
        ("--key --tlog-upload", ["--tlog-upload=false"]),
        ("--key --tlog-upload --use-signing-config", ["--tlog-upload=false", "--use-signing-config=false"]),
        ("--key --offline", ["--offline"]),
    ],
)
def test_no_cosign_writes_into_the_public_log(known: str, flags: list[str]) -> None:
    assert push.quiet_flags(known) == flags


def _image(packages: dict[str, str]) -> Image:
    contents = {"machine": "x86_64", "python": "3.13.5", "packages": packages, "dpkg": _DPKG}
    return Image(name="mnist-train:9.9.9", id="sha256:1", platforms="linux/amd64", contents=contents)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of three packages, one of which is not for Linux."""
    names: list[Any] = [
        {"name": "numpy", "version": "2.1.0"},
        {"name": "typing-extensions", "version": "4.0.0"},
        {
            "name": "colorama",
            "version": "0.4",
            "properties": [{"name": "uv:package:marker", "value": "sys_platform == 'win32'"}],
        },
    ]
    monkeypatch.setattr(bill, "make_bill", lambda **_: {"components": names})


@pytest.mark.usefixtures("locked")
def test_the_bill_has_the_packages_of_the_lock_and_of_dpkg() -> None:
    source = Source(folder=REPOSITORY, revision="c0ffee", seconds=0)
    made = bill.make_spdx("9.9.9", source, _image({"numpy": "2.1.0", "typing_extensions": "4.0.0"}))
    assert (made["spdxVersion"], made["creationInfo"]["created"]) == ("SPDX-2.3", "1970-01-01T00:00:00Z")
    assert [each["externalRefs"][0]["referenceLocator"] for each in made["packages"][1:]] == [
        "pkg:pypi/numpy@2.1.0",
        "pkg:pypi/typing-extensions@4.0.0",
        "pkg:deb/debian/libc6@2.41-12%2Bdeb13u2?arch=amd64",
        "pkg:deb/debian/zlib1g@1%3A1.3.dfsg%2Breally1.3.1-1%2Bb1?arch=amd64",
    ]
    names = [each["SPDXID"] for each in made["packages"]]
    assert len(set(names)) == len(names)
    contained = [each["relatedSpdxElement"] for each in made["relationships"] if each["relationshipType"] == "CONTAINS"]
    assert contained == names[1:]


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ({"numpy": "2.1.1", "typing_extensions": "4.0.0"}, "found numpy 2.1.1 in place of 2.1.0"),
        ({"numpy": "2.1.0"}, "found typing-extensions None in place of 4.0.0"),
        ({"numpy": "2.1.0", "typing_extensions": "4.0.0", "evil": "1"}, "found evil 1 in place of None"),
    ],
)
def test_an_image_with_other_packages_than_the_lock_is_refused(installed: dict[str, str], reason: str) -> None:
    source = Source(folder=REPOSITORY, revision="c0ffee", seconds=0)
    with pytest.raises(ReleaseError, match=reason):
        bill.make_spdx("9.9.9", source, _image(installed))


def test_the_provenance_names_every_file_image_and_material_by_digest(tmp_path: Path) -> None:
    file = tmp_path / "mnist-train-9.9.9.tgz"
    file.write_bytes(b"chart")
    made = provenance.make_provenance(
        "9.9.9",
        Source(folder=REPOSITORY, revision="c0ffee", seconds=0),
        [file],
        {"registry.example/mnist-train": "sha256:12"},
        base="debian@sha256:34",
        builder="urn:ci",
    )
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert [(each["name"], list(each["digest"])) for each in made["subject"]] == [
        ("mnist-train-9.9.9.tgz", ["sha256"]),
        ("registry.example/mnist-train", ["sha256"]),
    ]
    materials = {each["uri"]: each["digest"] for each in made["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert materials["git+mnist-train"] == {"gitCommit": "c0ffee"}
    assert materials["docker:debian"] == {"sha256": "34"}
    assert materials["uv.lock"] == {"sha256": provenance.sha256_of(REPOSITORY / "uv.lock")}
    assert made["predicate"]["runDetails"] == {"builder": {"id": "urn:ci"}}


def _try(version: str) -> tuple[str, Path]:
    command = ["scripts/release", version, "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a release would refuse: pyproject.toml must have the version" in done.stderr
    return done.stdout, REPOSITORY / "out" / "release" / version


@pytest.fixture
def made_up_version() -> Iterator[str]:
    version = "99.9.9"
    yield version
    shutil.rmtree(REPOSITORY / "out" / "release" / version, ignore_errors=True)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_dry_run_builds_the_same_files_twice_and_leaves_the_repository_alone(made_up_version: str) -> None:
    if shutil.which("helm") is None:
        skip_or_fail("helm is not on PATH")
    before = _git(REPOSITORY, "status", "--porcelain")
    said, out = _try(made_up_version)
    assert sorted(file.name for file in out.iterdir()) == [
        "SHA256SUMS",
        "mnist-train-99.9.9.provenance.json",
        "mnist-train-99.9.9.spdx.json",
        "mnist-train-99.9.9.tgz",
        "mnist_train-99.9.9-py3-none-any.whl",
        "mnist_train-99.9.9.tar.gz",
    ]
    names = {each["name"] for each in json.loads((out / "mnist-train-99.9.9.spdx.json").read_text())["packages"]}
    assert {"keras", "obstore", "promise"} <= names
    assert not {"kubernetes", "pytest", "torch"} & names
    assert _try(made_up_version)[0] == said
    assert _git(REPOSITORY, "status", "--porcelain") == before
