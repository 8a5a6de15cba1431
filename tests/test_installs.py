"""S8: every install takes what the locks name, by hash, and runs nothing else, whatever the package index serves."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, skip_or_fail

pytestmark = pytest.mark.security("S8")

_SCRIPTS = REPOSITORY / "scripts"
_PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
_LOCK: dict[str, Any] = tomllib.loads((REPOSITORY / "uv.lock").read_text())
_SHA256 = re.compile(r"(sha256:|--hash=sha256:)[0-9a-f]{64}")


def _wheel(folder: Path, name: str, version: str, module: str, code: str) -> None:
    """A wheel of that name and version with other contents: one module, and a program that is named like the package."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        module: code,
        f"{name}_program.py": f"def main():\n    {code.replace(chr(10), chr(10) + '    ')}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}_program:main\n",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


def _run(*command: str, folder: Path, index: Path) -> subprocess.CompletedProcess[str]:
    """A command whose only package index is a folder; its PATH has no uv, and its python3 no venv."""
    programs = folder / "bin"
    programs.mkdir()
    python = Path(sys.base_prefix) / "bin" / "python3"
    (programs / "python3").write_text(f'#!/bin/sh\n[ "$2" != venv ] && exec {python} "$@"\n')
    (programs / "python3").chmod(0o755)
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    environment = {
        "HOME": str(folder),
        "PATH": path,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "UV_CACHE_DIR": str(folder / "cache"),
        "UV_PYTHON": sys.executable,
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _pinned_uv() -> str:
    subprocess.run(["scripts/uv", "--version"], cwd=REPOSITORY, capture_output=True, check=False)  # installs it
    for found in (REPOSITORY / ".venv-tools" / "bin" / "uv", shutil.which("uv")):
        if found and Path(found).is_file():
            return str(found)
    skip_or_fail("no uv: scripts/uv --version installs it")
    return ""


def test_another_uv_of_the_same_version_is_not_installed(tmp_path: Path) -> None:
    version = str(re.findall(r"^uv==(\S+)", (_SCRIPTS / "uv.txt").read_text(), re.MULTILINE)[0])
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close(); print('uv {version}')"
    _wheel(tmp_path / "index", "uv", version, "uv.py", code)
    (tmp_path / "scripts").mkdir()
    for name in ("uv", "uv.txt"):
        shutil.copy(_SCRIPTS / name, tmp_path / "scripts")
    done = _run("scripts/uv", "--version", folder=tmp_path, index=tmp_path / "index")
    assert done.returncode == 69, done.stderr
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith(f"scripts/uv: uv {version} could not be installed")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("version", ["locked", "9999"])
def test_another_builder_of_the_project_is_not_run(tmp_path: Path, version: str) -> None:
    """What `scripts/setup` does: it builds the project with hatchling, which the index serves."""
    locked = {each["requirement"].partition("==")[0]: each for each in _uv_settings()["build-constraint-dependencies"]}
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    number = locked["hatchling"]["requirement"].partition("==")[2] if version == "locked" else version
    _wheel(tmp_path / "index", "hatchling", number, "hatchling/build.py", code)
    _wheel(tmp_path / "index", "editables", locked["editables"]["requirement"].partition("==")[2], "editables.py", code)
    text = (REPOSITORY / "pyproject.toml").read_text()
    settings = re.search(r"^\[tool\.uv\]\n.*?(?=^conflicts)", text, re.MULTILINE | re.DOTALL)
    assert settings
    (tmp_path / "pyproject.toml").write_text(
        f'[build-system]\nrequires = {_PROJECT["build-system"]["requires"]}\nbuild-backend = "hatchling.build"\n\n'
        f'[project]\nname = "mnist-train"\nversion = "0"\nrequires-python = ">=3.11"\n\n{settings[0]}'
    )
    index = tmp_path / "index"
    done = _run(_pinned_uv(), "sync", "--quiet", "--no-index", f"--find-links={index}", folder=tmp_path, index=index)
    assert done.returncode != 0
    assert ("ash mismatch" if version == "locked" else "hatchling==") in done.stderr, done.stderr
    assert not (tmp_path / "ran").exists()


def _uv_settings() -> dict[str, Any]:
    settings: dict[str, Any] = _PROJECT["tool"]["uv"]
    return settings


def test_every_file_that_an_install_takes_has_a_hash() -> None:
    for package in _LOCK["package"]:
        if "registry" not in package["source"]:
            assert package["source"] == {"editable": "."}
            continue
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert all(_SHA256.fullmatch(file["hash"]) for file in files), package["name"]
    assert _uv_settings()["require-build-hashes"] is True
    for constraint in _uv_settings()["build-constraint-dependencies"]:
        assert re.fullmatch(r"[a-z-]+==[0-9.]+", constraint["requirement"])
        assert constraint["hashes"]
        assert all(_SHA256.fullmatch(digest) for digest in constraint["hashes"])
    pinned = (_SCRIPTS / "uv.txt").read_text().replace("\\\n", " ").splitlines()
    assert [line for line in pinned if not line.startswith("#") and not _SHA256.search(line)] == []


def test_no_script_installs_without_hashes() -> None:
    """pip and uv are started nowhere but where hashes are checked; `uv sync` checks those of the lock by itself."""
    sources = [REPOSITORY / "Dockerfile", REPOSITORY / ".ci" / "run"]
    sources += [path for path in _SCRIPTS.iterdir() if path.is_file()]
    found = []
    for path in sources:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            installs = re.findall(r"\bpip\"? install\b[^&|;]*", line.partition(" #")[0])
            found += [install for install in installs if not re.search(r"--require-hashes|\$by_hash", install)]
            assert "uv sync" not in line or "--locked" in line, (path, line)
    assert not found
