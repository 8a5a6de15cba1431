"""`scripts/release VERSION`."""

import argparse
import json
import os
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from generators import version as followers

from releasing import build, push
from releasing.bill import make_spdx
from releasing.checks import find_missing, find_refusals
from releasing.cut import check_version, cut_changelog, read_changelog, write_changelog, write_version
from releasing.provenance import make_provenance, sha256_of
from releasing.tools import ReleaseError, run

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/release", allow_abbrev=False)
    parser.add_argument("version", nargs="?", help="such as 1.2.3; with --dry-run alone: that of pyproject.toml")
    doing = parser.add_mutually_exclusive_group(required=True)
    doing.add_argument("--cut", action="store_true", help="write the version and the date into the files")
    doing.add_argument("--dry-run", action="store_true", help="build all but the image, and push nothing")
    doing.add_argument("--registry", help="where image and chart are pushed, such as registry.example/team")
    given = parser.parse_args()
    try:
        version = given.version or (followers.read_version(ROOT) if given.dry_run else "")
        check_version(version)
        if given.cut:
            _cut(version)
        elif given.dry_run:
            _try(version)
        else:
            _release(version, given.registry.rstrip("/"))
    except ReleaseError as refusal:
        print(f"scripts/release: {refusal}", file=sys.stderr)
        return refusal.code
    return 0


def _cut(version: str) -> None:
    """Write the files of a version, generated ones included; git is left to the user."""
    cut_changelog(read_changelog(ROOT), version, "today")  # refuses before anything is written
    write_version(ROOT, version)
    write_changelog(ROOT, version, datetime.now(UTC).date().isoformat())
    run(sys.executable, "-m", "generators", cwd=ROOT, env=os.environ | {"PYTHONPATH": "scripts:."})
    run(sys.executable, "-m", "tests.charts.test_render", cwd=ROOT)
    print(f"scripts/release: next: git commit -a -m 'chore: release {version}' && git tag v{version}")


def _try(version: str) -> None:
    """What a release does, up to the image; the commit need not be ready for it."""
    for refused in find_refusals(ROOT, version):
        print(f"scripts/release: a release would refuse: {refused}", file=sys.stderr)
    with build.export(ROOT) as source:
        if followers.read_version(source.folder) != version:
            build.set_times(source, write_version(source.folder, version))
        out = _make_folder(version)
        files = _build_files(version, source, out, image=None)
        _write_provenance(version, source, files, out, {})
    _say_files(out)
    print("scripts/release: dry run: no image was built, nothing was pushed")


def _release(version: str, registry: str) -> None:
    """Every refusal, everything that can fail here, then what cannot be taken back."""
    refusals = [*find_refusals(ROOT, version), *find_missing(registry, _base())]
    if refusals:
        raise ReleaseError("\n".join(f"scripts/release: {each}" for each in refusals).removeprefix("scripts/release: "))
    for tool in ("docker", "helm", *(["cosign"] if os.environ.get("COSIGN_KEY") else [])):
        run(tool, "version")
    with build.export(ROOT) as source:
        out = _make_folder(version)
        platforms = build.find_platforms()
        print(f"scripts/release: building {version} for {platforms or 'the platform of this machine alone: no buildx'}")
        image = build.build_image(source, version, platforms)
        files = _build_files(version, source, out, image=image)
        has_image, has_chart = push.compare(registry, version, image, out / f"mnist-train-{version}.tgz")
        digest = push.push_image(registry, version, image, source)
        _say_pushed(f"{registry}/mnist-train@{digest}", was_there=has_image)
        _finish(version, source, files, out, registry=registry, digest=digest, has_chart=has_chart)


def _finish(
    version: str, source: build.Source, files: list[Path], out: Path, *, registry: str, digest: str, has_chart: bool
) -> None:
    """What needs the digest of the image: provenance and signatures; and the chart, last."""
    provenance = _write_provenance(version, source, files, out, {f"{registry}/mnist-train": digest})
    predicate = out / "predicate.json"
    predicate.write_text(json.dumps(json.loads(provenance.read_text("utf-8"))["predicate"]), "utf-8")
    push.sign_image(registry, digest, out / f"mnist-train-{version}.spdx.json", predicate)
    predicate.unlink()
    of_chart = push.push_chart(registry, out / f"mnist-train-{version}.tgz")
    _say_pushed(f"{registry}/charts/mnist-train@{of_chart}", was_there=has_chart)
    push.sign_chart(registry, of_chart)
    for file in sorted(out.iterdir()):
        push.sign_file(file)
    _say_files(out)
    print(
        f"scripts/release: released {version}:\n"
        f"helm install train oci://{registry}/charts/mnist-train --version {version}"
        f" --set image.repository={registry}/mnist-train --set image.digest={digest}"
    )


def _build_files(version: str, source: build.Source, out: Path, *, image: build.Image | None) -> list[Path]:
    bill = out / f"mnist-train-{version}.spdx.json"
    _write(bill, make_spdx(version, source, image))
    packages = build.build_packages(source, out, ROOT / "scripts" / "uv")
    return [*packages, build.build_chart(source, out, version), bill]


def _write_provenance(version: str, source: build.Source, files: list[Path], out: Path, images: dict[str, str]) -> Path:
    builder = os.environ.get("BUILDER_ID", "urn:mnist-train:builder:unnamed")
    path = out / f"mnist-train-{version}.provenance.json"
    _write(path, make_provenance(version, source, files, images, base=_base(), builder=builder))
    sums = "".join(f"{sha256_of(file)}  {file.name}\n" for file in sorted([*files, path]))
    (out / "SHA256SUMS").write_text(sums, "utf-8")
    return path


def _base() -> str:
    """The base image, as scripts/image finds it."""
    of_file = re.findall(r"^ARG BASE=(.+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    return os.environ.get("BASE") or str(of_file[0])


def _make_folder(version: str) -> Path:
    out = ROOT / "out" / "release" / version
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _say_pushed(name: str, *, was_there: bool) -> None:
    print(f"scripts/release: {'was there already: ' if was_there else 'pushed '}{name}")


def _say_files(out: Path) -> None:
    for file in sorted(out.iterdir()):
        print(f"{sha256_of(file)}  {file.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
