"""Says what was made of what, by whom: SLSA's provenance in an in-toto statement."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from releasing.build import Source

Json = dict[str, Any]
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
_MATERIALS = ("uv.lock", "scripts/uv.txt", "Dockerfile", "pyproject.toml")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_provenance(
    version: str, source: Source, files: Iterable[Path], images: Mapping[str, str], *, base: str, builder: str
) -> Json:
    """The statement about files, and images by name with their digest (`sha256:...`)."""
    subjects = [{"name": file.name, "digest": {"sha256": sha256_of(file)}} for file in files]
    subjects += [{"name": name, "digest": _digest(digest)} for name, digest in images.items()]
    name, _, digest = base.partition("@")
    materials: list[Json] = [{"uri": "git+mnist-train", "digest": {"gitCommit": source.revision}}]
    materials += [{"uri": f"docker:{name}", "digest": _digest(digest)}] if digest else []
    materials += [{"uri": each, "digest": {"sha256": sha256_of(source.folder / each)}} for each in _MATERIALS]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:mnist-train:scripts/release",
                "externalParameters": {"version": version},
                "internalParameters": {"platform": f"{platform.system()}/{platform.machine()}"},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }


def _digest(text: str) -> dict[str, str]:
    kind, _, value = text.partition(":")
    return {kind: value}
