"""Azurite, Microsoft's own emulator of Azure's Blob service, as a process of the tests."""

import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Known to everybody: Azurite's documentation has them."""
_VERSION = "2021-08-06"


@dataclass(frozen=True, slots=True, kw_only=True)
class Azurite:
    """A running one.

    Attributes:
        endpoint: with the account, which Azurite has in the path.
    """

    endpoint: str
    process: subprocess.Popen[bytes]
    account: str = _ACCOUNT

    @property
    def env(self) -> dict[str, str]:
        """The key of the account."""
        return {"AZURE_STORAGE_ACCOUNT_KEY": _KEY}

    def make_container(self) -> str:
        """A fresh one; its name."""
        name = f"container-{uuid.uuid4().hex[:12]}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        signed = "".join(f"{header}:{value}\n" for header, value in headers.items())
        text = "PUT" + "\n" * 12 + signed + f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
        signature = base64.b64encode(hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()).decode()
        headers["Authorization"] = f"SharedKey {_ACCOUNT}:{signature}"
        request = urllib.request.Request(f"{self.endpoint}/{name}?restype=container", method="PUT", headers=headers)
        urllib.request.urlopen(request, timeout=10).close()
        return name


@contextmanager
def serve() -> Iterator[Azurite]:
    """Start one in memory, on a free port; skip where there is none: `AZURITE_BLOB` names azurite-blob, else it is on PATH."""
    program = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob on PATH; make one with tests/job/store/npm/azurite.sh FOLDER")
    flags = ["--inMemoryPersistence", "--blobPort", "0", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb+") as log:
        process = subprocess.Popen([program, *flags], stdout=log, stderr=log, cwd=folder)
        try:
            yield Azurite(endpoint=f"{_address(Path(log.name))}/{_ACCOUNT}", process=process)
        finally:
            process.kill()
            process.wait()


def _address(log: Path) -> str:
    for _ in range(600):
        if found := re.search(r"successfully listens on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"Azurite did not start: {log.read_text()}")
