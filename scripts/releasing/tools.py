"""The programs that a release is made with, and how one of them says no."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


class ReleaseError(Exception):
    """A release that cannot be made: what is wrong, and what to do. `code` as in docs/reference.md."""

    def __init__(self, message: str, *, code: int = 64) -> None:
        super().__init__(message)
        self.code = code


def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program prints on its standard output.

    Raises:
        ReleaseError: it is missing (69), or it failed (1).
    """
    done = attempt(*command, cwd=cwd, env=env)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise ReleaseError(f"`{' '.join(command[:3])} ...` ended with {done.returncode}: {said}", code=1)
    return done.stdout


def attempt(
    *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same of a program that may fail."""
    if shutil.which(command[0]) is None:
        raise ReleaseError(f"{command[0]} is not on PATH; install it and start again", code=69)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def is_local(registry: str) -> bool:
    """Whether a registry is on this machine, where docker, helm and cosign speak plain http."""
    return registry.partition("/")[0].partition(":")[0] in ("localhost", "127.0.0.1")
