"""Gives the repository a version: pyproject.toml, the files that follow it, and the section of CHANGELOG.md."""

import re
from pathlib import Path

from generators import version as followers
from packaging.version import InvalidVersion, Version

from releasing.tools import ReleaseError

_OPEN = "## [Unreleased]\n"
_SECTION = re.compile(r"^## \[(?P<version>\d[^]]*)\] - \d{4}-\d\d-\d\d$", re.MULTILINE)
_SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-rc\.[1-9]\d*)?")


def check_version(version: str) -> None:
    """Raises ReleaseError for what is no version of Helm and of Python alike."""
    if not _SEMANTIC.fullmatch(version):
        raise ReleaseError(f"VERSION must be like 1.2.3 or 1.2.3-rc.1, received {version!r}")


def cut_changelog(text: str, version: str, day: str) -> str:
    """The text in which what was unreleased is the section of the version, below an empty "Unreleased".

    Raises:
        ReleaseError: nothing is unreleased, or the version is not newer than those that have a section.
    """
    _, opening, below = text.partition(_OPEN)
    if not opening:
        raise ReleaseError(
            "CHANGELOG.md must have the heading `## [Unreleased]`, found none; put it above the newest version"
        )
    unreleased = re.split(r"^## ", below, maxsplit=1, flags=re.MULTILINE)[0]
    if "- " not in unreleased:
        raise ReleaseError(
            "CHANGELOG.md must say what is new, found nothing below `## [Unreleased]`; write it there first"
        )
    older = [found for found in released_versions(text) if _key(found) >= _key(version)]
    if older:
        raise ReleaseError(f"VERSION must be newer than {older[0]}, which CHANGELOG.md has, received {version}")
    return text.replace(_OPEN, f"{_OPEN}\n## [{version}] - {day}\n", 1)


def released_versions(text: str) -> list[str]:
    """The versions that have a dated section, the newest first."""
    return [match["version"] for match in _SECTION.finditer(text)]


def _key(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        raise ReleaseError(
            f"CHANGELOG.md must have versions like 1.2.3, found {version!r}; correct its heading"
        ) from None


def write_version(root: Path, version: str) -> list[Path]:
    """Write the version into pyproject.toml and the files that follow it; returns those that changed."""
    project = root / "pyproject.toml"
    text = project.read_text("utf-8")
    written = {project: re.sub(r'^version = ".*"$', f'version = "{version}"', text, count=1, flags=re.MULTILINE)}
    project.write_text(written[project], "utf-8")
    written |= {root / name: content for name, content in followers.make_files(root).items()}
    changed = [path for path, content in written.items() if path == project or path.read_text("utf-8") != content]
    for path in changed:
        path.write_text(written[path], "utf-8")
    return changed


def read_changelog(root: Path) -> str:
    """The text of CHANGELOG.md.

    Raises:
        ReleaseError: there is none.
    """
    path = root / "CHANGELOG.md"
    if not path.is_file():
        raise ReleaseError(f"CHANGELOG.md must say what is new, found no file {path}; write it first")
    return path.read_text("utf-8")


def write_changelog(root: Path, version: str, day: str) -> Path:
    """Cut CHANGELOG.md."""
    path = root / "CHANGELOG.md"
    path.write_text(cut_changelog(read_changelog(root), version, day), "utf-8")
    return path
