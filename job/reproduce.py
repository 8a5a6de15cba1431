"""Trains again what a COMMIT says, in a process and a store of its own, and compares the digests.

The settings that decide the result, and the threads, come from the COMMIT; where the data is may be said anew.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from job.attempt import bits_depend_on
from job.contract import ENV_PREFIX
from job.errors import ConflictError, IntegrityError

_DIGESTS = ("result_digest", "weights_digest", "state_digest")
_OWN_SECTIONS = ("--run.", "--store.", "--promotion.")
"""Of the command itself: where the COMMIT is read, never how the run is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Two COMMITs of the same settings side by side.

    Attributes:
        different: names of the digests that differ.
        hardware: what the bits depend on and differs too: name -> (before, now).
    """

    different: tuple[str, ...]
    hardware: Mapping[str, tuple[object, object]]

    def check(self, *, run: str) -> None:
        """Raises:
        ConflictError: something differs; says what, and whether the hardware explains it.
        """
        if not self.different:
            return
        if "result_digest" in self.different:
            why = "other data or settings than the run had; name the same with --data.source and --data.uri"
        elif self.hardware:
            changed = "; ".join(f"{name} was {before}, is {now}" for name, (before, now) in self.hardware.items())
            why = f"this machine computes other bits: {changed}"
        else:
            why = "although machine, versions and threads are the same; look at bit_identical in mnist-job show"
        raise ConflictError(f"run {run} was not reproduced: {', '.join(self.different)} differ: {why}")


def settings_of(commit: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that make the same result, from what was resolved when the run was made.

    Raises:
        IntegrityError: the COMMIT does not hold them.
    """
    try:
        config, inputs, threads = commit["config"], commit["inputs"], commit["lineage"]["threads"]
        data = {name: value for name, value in config["data"].items() if name != "cache_dir"}
        return {
            "run": {"seed": inputs["seed"]},
            "data": data,
            "model": inputs["model"],
            "train": inputs["train"],
            "cluster": {
                "cpu_replicas": config["cluster"]["cpu_replicas"],
                "intra_op_threads": threads["intra_op"],
                "inter_op_threads": threads["inter_op"],
            },
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the COMMIT does not say how its run was made: {error} is missing") from error


def train_again(
    commit: Mapping[str, Any], *, run_id: str, store_uri: str, store_settings: Sequence[str], settings: Sequence[str]
) -> int:
    """Make the run again under another id; returns the exit code of its process, whose log goes to stderr.

    Args:
        store_settings: how to reach `store_uri`.
        settings: of the user, such as where the data is now.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-reproduce-") as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(settings_of(commit)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "job", "run", f"--config={path}", f"--run.id={run_id}", f"--store.uri={store_uri}"),
            *store_settings,
            *("--promotion.enabled=false", "--observe.metrics_port=0", f"--retention.keep_runs={2**31 - 1}"),
            *[setting for setting in settings if not setting.startswith(_OWN_SECTIONS)],
        ]
        # The environment would come before the COMMIT's settings.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        process = subprocess.Popen(command, env=environ, stdout=sys.stderr)  # noqa: S603 - settings are no shell text
        try:
            code = process.wait()
        finally:
            process.terminate()  # when this process is told to stop
    return code if code >= 0 else 128 - code


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Reproduction:
    """What two COMMITs differ in."""
    old, new = bits_depend_on(before["lineage"]), bits_depend_on(now["lineage"])
    return Reproduction(
        different=tuple(name for name in _DIGESTS if before.get(name) != now.get(name)),
        hardware={
            name: (old.get(name), new.get(name)) for name in old.keys() | new.keys() if old.get(name) != new.get(name)
        },
    )
