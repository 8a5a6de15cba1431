"""scripts/audit: what it accepts, what it reports, and that no answer of a vulnerability database is no success."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import audit_packages
import pytest

from tests.conftest import REPOSITORY, skip_or_fail

pytestmark = pytest.mark.security("S8")


@pytest.mark.parametrize(
    ("fields", "licence", "is_accepted"),
    [
        ({"License-Expression": "MIT AND PSF-2.0"}, "MIT AND PSF-2.0", True),
        ({"License-Expression": "GPL-3.0-only OR (MIT)"}, "GPL-3.0-only OR (MIT)", True),
        ({"License-Expression": "MIT AND GPL-3.0-only"}, "MIT AND GPL-3.0-only", False),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache-2.0", True),
        ({"Classifier": "License :: Other/Proprietary License", "License": "MIT"}, "Other/Proprietary License", False),
        ({"License": "BSD\nand more"}, "BSD-3-Clause", True),
        ({}, "none", False),
    ],
)
def test_a_licence_that_nobody_accepted_is_found(fields: dict[str, str], licence: str, is_accepted: bool) -> None:
    package = Message()
    for name, value in fields.items():
        package[name] = value.replace("\n", "\n ")
    assert audit_packages.licence_of(package) == licence  # type: ignore[arg-type]
    assert audit_packages.is_accepted(licence) is is_accepted


class _Osv(BaseHTTPRequestHandler):
    """OSV's API, in which one package has one fault, or none has."""

    faulty = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        fault = {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
        self._answer({"results": [fault if each["package"]["name"] == self.faulty else {} for each in asked]})

    def do_GET(self) -> None:
        self._answer({"id": "TEST-1", "modified": "2026-01-01T00:00:00Z", "summary": "a fault of the test"})

    def _answer(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Osv)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def _audit(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    if subprocess.run(["scripts/uv", "--version"], cwd=REPOSITORY, capture_output=True, check=False).returncode:
        skip_or_fail("no uv: see scripts/uv --version")
    command = [sys.executable, "scripts/audit_packages.py", f"--output={folder / 'sbom.json'}", f"--service-url={url}"]
    environment = os.environ | {"UV_HTTP_RETRIES": "0"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_package_of_the_image_is_in_the_bill_and_has_an_accepted_licence(tmp_path: Path, osv: str) -> None:
    done = _audit(tmp_path, osv)
    assert done.returncode == 0, done.stdout + done.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    names = {each["name"] for each in bill["components"]}
    assert {"keras", "numpy", "obstore", "tensorflow-cpu", "kubernetes", "promise"} <= names
    assert not {"pytest", "torch", "pyarrow"} & names
    assert f"licences: 0 of {len(bill['components'])} packages are not accepted" in done.stdout


def test_a_known_vulnerability_is_named(tmp_path: Path, osv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Osv, "faulty", "numpy")
    done = _audit(tmp_path, osv)
    assert done.returncode == 1
    assert "TEST-1" in done.stdout + done.stderr


def test_without_a_database_nothing_is_called_safe(tmp_path: Path, dead_port: int) -> None:
    done = _audit(tmp_path, f"http://127.0.0.1:{dead_port}/")
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1].startswith("scripts/audit: no vulnerability database answered")
