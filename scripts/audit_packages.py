"""What scripts/audit does: the bill of materials, the licences, and the known vulnerabilities of the locked packages.

uv knows the lock, so it writes the bill and asks the database. Licences are read from what is installed in .venv.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker

_UV = str(Path(__file__).with_name("uv"))
_OTHERS = ("--no-dev", "--no-extra", "gpu", "--no-extra", "bench")
_NEVER = "sys_platform == 'never'"  # left out by pyproject.toml
_ACCEPTED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MPL-2.0"),
    *("PSF-2.0", "Unlicense", "Zlib"),
}
"""SPDX identifiers. None of them asks anything of a program that only uses the package, unchanged."""
_SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""How older packages write them."""
_READ = {("namex", "0.1.0"): "Apache-2.0"}
"""Of packages whose metadata names none: what the licence file in the package says."""

Json = dict[str, Any]


def make_bill(*, extras: Sequence[str] = ("cpu", "client")) -> Json:
    """The locked packages of the image and the client as CycloneDX, with the hash of every file that may be installed.

    Raises:
        SystemExit: a component has no version or no hash, which uv.lock does not allow.
    """
    ours = [f"--extra={extra}" for extra in extras]
    command = [_UV, "export", "--quiet", "--locked", "--no-dev", *ours, "--format", "cyclonedx1.5"]
    bill: Json = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    bill["components"] = [each for each in bill["components"] if _NEVER not in markers_of(each)]
    for component in bill["components"]:
        files = component.get("externalReferences", [])
        if not component.get("version") or not files or not all(file.get("hashes") for file in files):
            raise SystemExit(
                f"scripts/audit: {component['name']} has no version or no hash in the lock; run scripts/uv lock"
            )
    return bill


def markers_of(component: Json) -> list[str]:
    """On which machines a component is installed, as the lock says; empty: on all."""
    return [each["value"] for each in component.get("properties", []) if each["name"] == "uv:package:marker"]


def licence_of(package: metadata.PackageMetadata) -> str:
    """An SPDX expression, or what the package says instead."""
    classifiers = [
        each.rpartition(" :: ")[2] for each in package.get_all("Classifier") or [] if each.startswith("License")
    ]
    expression = package.get_all("License-Expression") or []
    said = expression or [_SPELLINGS.get(each, each) for each in classifiers if each != "DFSG approved"]
    if said:
        return " AND ".join(map(str, said))
    first = str((package.get_all("License") or ["none"])[0]).strip().splitlines()[0]
    return _SPELLINGS.get(first, first)


def find_licence(name: str, version: str) -> str:
    """The licence of an installed package.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return _READ.get((name, version)) or licence_of(metadata.metadata(name))


def is_accepted(licence: str) -> bool:
    """Whether each part of an expression is accepted; of alternatives one is enough."""
    choices = [part.strip(" ()") for part in re.split(r"\bOR\b", licence)]
    return any(set(re.split(r"\s+AND\s+", choice)) <= _ACCEPTED for choice in choices)


def _licences_not_accepted(bill: Json) -> Iterator[str]:
    for component in bill["components"]:
        name = component["name"]
        try:
            licence = find_licence(name, component["version"])
        except metadata.PackageNotFoundError:
            if all(Marker(marker).evaluate() for marker in markers_of(component)):
                yield f"{name} is not installed, so its licence is unknown; run scripts/setup"
            continue
        component["licenses"] = [{"license": {"name": licence}}]
        if not is_accepted(licence):
            yield f"{name} {component['version']}: {licence}; accept it in scripts/audit_packages.py, or do without the package"


def _vulnerabilities(service_url: str | None) -> int:
    """0: none; 1: found, and printed; 69: no answer."""
    where = ["--service-url", service_url] if service_url else []
    code = subprocess.run([_UV, "audit", "--locked", *_OTHERS, *where], check=False).returncode
    if code in (0, 1):
        return code
    print(
        "scripts/audit: no vulnerability database answered, so no fault of a package is known; start it where one can be"
        " reached, or name one: --service-url URL",
        file=sys.stderr,
    )
    return 69


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/audit", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("out/sbom.json"))
    parser.add_argument("--service-url")
    given = parser.parse_args()
    bill = make_bill()
    not_accepted = list(_licences_not_accepted(bill))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(bill, indent=1) + "\n")
    print(f"bill of materials: {len(bill['components'])} packages in {given.output}")
    for each in not_accepted:
        print(f"scripts/audit: licence: {each}", file=sys.stderr)
    print(f"licences: {len(not_accepted)} of {len(bill['components'])} packages are not accepted")
    sys.stdout.flush()
    code = _vulnerabilities(given.service_url)
    return 1 if not_accepted else code


if __name__ == "__main__":
    sys.exit(main())
