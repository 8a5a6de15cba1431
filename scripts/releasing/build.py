"""Builds what a release is made of, out of the files that git has for a commit: nothing that lies beside them gets in."""

import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from releasing.tools import ReleaseError, attempt, run

_BOTH = "linux/amd64,linux/arm64"
_LOOK = """
import json, platform, site
from importlib import metadata
found = metadata.distributions(path=site.getsitepackages()[:1])
print(json.dumps({
    "machine": platform.machine(),
    "python": platform.python_version(),
    "packages": {each.name: each.version for each in found},
    "dpkg": open("/var/lib/dpkg/status", encoding="utf-8").read(),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of a commit, in a folder of their own."""

    folder: Path
    revision: str
    seconds: int
    """When the commit was made, since 1970: the time of every file, so that the same commit gives the same bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What was built, and what is in it."""

    name: str
    id: str
    platforms: str
    """As docker writes them, such as linux/amd64,linux/arm64."""
    contents: dict[str, Any]
    """machine, python, packages (name -> version) and dpkg (its list), of this machine's image."""


@contextmanager
def export(root: Path) -> Iterator[Source]:
    """The checked-out commit, without anything that is not in it."""
    revision = run("git", "rev-parse", "HEAD", cwd=root).strip()
    seconds = int(run("git", "log", "-1", "--format=%ct", cwd=root))
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        packed, folder = Path(name, "source.tar"), Path(name, "source")
        run("git", "-c", "tar.umask=0022", "archive", f"--output={packed}", "HEAD", cwd=root)
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        yield Source(folder=folder, revision=revision, seconds=seconds)


def set_times(source: Source, changed: Sequence[Path]) -> None:
    """Give files that were made here the time of the commit."""
    for path in changed:
        os.utime(path, (source.seconds, source.seconds))


def build_packages(source: Source, out: Path, uv: Path) -> list[Path]:
    """The sdist, and the wheel that is built from it."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(source.seconds)}
    run(str(uv), "build", "--quiet", "--no-create-gitignore", "--out-dir", str(out), cwd=source.folder, env=environment)
    return sorted([*out.glob("*.whl"), *out.glob("*.tar.gz")])


def build_chart(source: Source, out: Path, version: str) -> Path:
    """The packaged chart, of which Helm renders a run and a schedule."""
    chart = source.folder / "charts" / "mnist-train"
    with_image = ("--set", "image.repository=registry.example/mnist-train")
    run("helm", "lint", "--strict", str(chart), *with_image)
    run("helm", "package", str(chart), "--destination", str(out))
    packed = out / f"mnist-train-{version}.tgz"
    set_times(source, [packed])  # `helm push` writes it into the manifest: another time would be another digest
    run("helm", "template", "release", str(packed), *with_image)
    run("helm", "template", "release", str(packed), *with_image, "--set", "schedule=@daily,activeDeadlineSeconds=7200")
    return packed


def find_platforms() -> str:
    """Both when docker's buildx has a builder for them; else none, which means this machine's own."""
    asked = attempt("docker", "buildx", "inspect", "--bootstrap")
    has_both = asked.returncode == 0 and all(each in asked.stdout for each in _BOTH.split(","))
    return _BOTH if has_both else ""


def build_image(source: Source, version: str, platforms: str) -> Image:
    """The image, of which this machine's own is started once to see what is in it."""
    name = f"mnist-train:{version}"
    environment = os.environ | {"REVISION": source.revision}
    script = str(source.folder / "scripts" / "image")
    if platforms:
        run(script, "--tag", name, "--platforms", platforms, env=environment)
    run(script, "--tag", name, env=environment)
    said = run("docker", "run", "--rm", name, "--version").split()[-1]
    if said != version:
        raise ReleaseError(
            f"`mnist-job --version` must say {version} in the image, received {said}; scripts/generate", code=1
        )
    own, image_id = run("docker", "inspect", "--format", "{{.Os}}/{{.Architecture}} {{.Id}}", name).split()
    contents = json.loads(run("docker", "run", "--rm", "--entrypoint", "python", name, "-c", _LOOK))
    return Image(name=name, id=image_id, platforms=platforms or own, contents=contents)
