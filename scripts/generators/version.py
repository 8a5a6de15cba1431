"""The version: pyproject.toml says it, and every other file that names it follows."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

_CHART = "charts/mnist-train"
_FOLLOWERS = {
    "job/__init__.py": r'^(__version__ = ")[^"]+(")$',
    "Dockerfile": r"^(ARG VERSION=).+()$",
    "uv.lock": r'^(name = "mnist-train"\nversion = ")[^"]+(")$',
    f"{_CHART}/Chart.yaml": r'^((?:version|appVersion): "?)[^"\s]+("?)$',
    f"{_CHART}/README.md": r"(\bimage\.tag=|mnist-train, version: )\d+\.\d+\.\d+(?:-rc\.\d+)?()",
    "docs/gitops.md": r"(\btag: )\d+\.\d+\.\d+(?:-rc\.\d+)?()",
    f"{_CHART}/ci/gpu-values.yaml": r"(\btag: )\S+(-gpu\b)",
    f"{_CHART}/ci/workers-gpu-values.yaml": r"(\btag: )\S+(-gpu\b)",
}
"""File -> what stands before and after the version in it."""


def read_version(root: Path) -> str:
    """The version of pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def make_files(root: Path, *, made: Mapping[str, str] | None = None) -> dict[str, str]:
    """Path -> content.

    Args:
        root: of the repository.
        made: what others have made, path -> content, in the place of what the files hold.

    Raises:
        ValueError: a file no longer names the version where it did.
    """
    version, texts = read_version(root), made or {}
    return {
        name: _follow(texts.get(name) or (root / name).read_text("utf-8"), root / name, pattern, version)
        for name, pattern in _FOLLOWERS.items()
    }


def _follow(text: str, path: Path, pattern: str, version: str) -> str:
    changed, count = re.subn(pattern, lambda match: match[1] + version + match[2], text, flags=re.MULTILINE)
    if not count:
        raise ValueError(
            f"{path}: must name the version, found nothing like {pattern}; see scripts/generators/version.py"
        )
    return changed
