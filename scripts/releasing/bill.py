"""The bill of materials of the image: SPDX 2.3, from uv.lock and from dpkg's list in the image."""

import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError
from typing import Any

from audit_packages import find_licence, is_accepted, make_bill, markers_of
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from releasing.build import Image, Source
from releasing.tools import ReleaseError

Json = dict[str, Any]
_UNKNOWN = "NOASSERTION"


def make_spdx(version: str, source: Source, image: Image | None) -> Json:
    """The document; without an image, the Python packages of this machine alone.

    Raises:
        ReleaseError: the image has other Python packages than uv.lock.
    """
    locked = [
        each for each in make_bill(extras=["cpu"])["components"] if _is_installed(each, image.contents if image else {})
    ]
    if image:
        _check_packages({each["name"]: each["version"] for each in locked}, image.contents["packages"])
    debian = list(_debian_packages(image.contents["dpkg"])) if image else []
    packages = [*map(_python_package, locked), *debian]
    main = _package("mnist-train", version, "", "Apache-2.0") | {"primaryPackagePurpose": "CONTAINER"}
    name = f"mnist-train-{version}"
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {source.revision} {json.dumps(packages)}").urn,
        "creationInfo": {
            "created": datetime.fromtimestamp(source.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: mnist-train-scripts-release-{version}"],
        },
        "packages": [main, *packages],
        "relationships": [
            _relationship("SPDXRef-DOCUMENT", "DESCRIBES", main["SPDXID"]),
            *(_relationship(main["SPDXID"], "CONTAINS", each["SPDXID"]) for each in packages),
        ],
    }


def _is_installed(component: Json, contents: Json) -> bool:
    """Whether the lock wants a component on Linux, with the machine and Python of the image or, without one, of this program."""
    python = contents.get("python", ".".join(map(str, sys.version_info[:3])))
    environment = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": contents.get("machine", os.uname().machine),
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
    }
    return all(Marker(marker).evaluate(environment) for marker in markers_of(component))


def _check_packages(locked: dict[str, str], installed: dict[str, str]) -> None:
    found = {str(canonicalize_name(name)): version for name, version in installed.items()}
    differ = sorted(name for name in locked.keys() | found.keys() if locked.get(name) != found.get(name))
    if differ:
        raise ReleaseError(
            f"the image must have the packages of uv.lock, found {differ[0]} {found.get(differ[0])} in place of"
            f" {locked.get(differ[0])} ({len(differ)} differ); build it again without docker's cache",
            code=1,
        )


def _python_package(component: Json) -> Json:
    name, version = component["name"], component["version"]
    try:
        licence = find_licence(name, version)
    except PackageNotFoundError:
        licence = ""
    return _package(name, version, f"pkg:pypi/{name}@{version}", licence if is_accepted(licence) else _UNKNOWN)


def _debian_packages(status: str) -> Iterator[Json]:
    for paragraph in filter(None, status.split("\n\n")):
        fields = HeaderParser().parsestr(paragraph.strip() + "\n")
        if fields["Status"] == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            quoted = version.replace("+", "%2B").replace(":", "%3A")
            yield _package(name, version, f"pkg:deb/debian/{name}@{quoted}?arch={fields['Architecture']}", _UNKNOWN)


def _package(name: str, version: str, purl: str, licence: str) -> Json:
    kind = purl.partition("/")[0].removeprefix("pkg:") or "root"
    package: Json = {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{kind}-{name}-{version}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": _UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": _UNKNOWN,
        "licenseDeclared": licence,
        "copyrightText": _UNKNOWN,
    }
    reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}
    return package | ({"externalRefs": [reference]} if purl else {})


def _relationship(one: str, kind: str, other: str) -> Json:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
