"""What a release refuses before it builds anything."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from generators import version as followers

from releasing.cut import released_versions
from releasing.tools import attempt, run


def find_refusals(root: Path, version: str) -> list[str]:
    """What keeps the commit that is checked out from being released as this version; empty: nothing."""
    return [*_wrong_in_git(root, version), *_wrong_in_files(root, version)]


def _wrong_in_git(root: Path, version: str) -> Iterator[str]:
    changed = run("git", "status", "--porcelain", cwd=root).splitlines()
    if changed:
        yield f"the tree must be clean, found {len(changed)} changed files such as {changed[0][3:]}; commit or stash them"
    tagged = attempt("git", "rev-parse", "--verify", "--quiet", f"refs/tags/v{version}^{{commit}}", cwd=root)
    head = run("git", "rev-parse", "HEAD", cwd=root)
    if tagged.returncode:
        yield f"the commit must have the tag v{version}, found no such tag; git tag v{version}"
    elif tagged.stdout != head:
        yield f"the tag v{version} must be the checked-out commit, found it on {tagged.stdout[:12]}; git checkout v{version}"


def _wrong_in_files(root: Path, version: str) -> Iterator[str]:
    has = followers.read_version(root)
    if has != version:
        yield f"pyproject.toml must have the version {version}, found {has}; scripts/release {version} --cut"
    for name, content in followers.make_files(root).items():
        if (root / name).read_text("utf-8") != content:
            yield f"{name} must have the version of pyproject.toml; scripts/generate"
    if version not in released_versions((root / "CHANGELOG.md").read_text("utf-8")):
        yield f"CHANGELOG.md must have a section `## [{version}] - DATE`, found none; scripts/release {version} --cut"


_REGISTRY = re.compile(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


def find_missing(registry: str, base: str) -> Iterator[str]:
    """What a push needs beside the commit: a place to push to, a base image by digest, and a key that is there."""
    if not _REGISTRY.fullmatch(registry):
        yield f"--registry must be HOST[:PORT][/PATH] in small letters, received {registry!r}; leave out oci:// and the image"
    if "@sha256:" not in base:
        yield f"the base image must be named by digest, found {base}; BASE=debian@sha256:... (see CONTRIBUTING.md)"
    key = os.environ.get("COSIGN_KEY", "")
    if key and "://" not in key and not Path(key).is_file():
        yield f"COSIGN_KEY must name a key of cosign, found no file {key}; cosign generate-key-pair makes one"
