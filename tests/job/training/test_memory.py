"""Examples that do not fit the pod's memory limit are refused with the numbers, before the kernel kills the pod."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from job.training.devices import held_to_memory, memory_in_use, memory_limit
from tests.conftest import QUICK, REPOSITORY, job_environment

OWN = """
import numpy as np
from job.datasets import Dataset

def make(megabytes):
    images = np.ones((1000 * megabytes, 100, 10), np.uint8)
    images[:, 0, 0] = np.arange(len(images)) % 256
    labels = np.arange(len(images)) % 2
    return Dataset(train_images=images[100:], train_labels=labels[100:], test_images=images[:100], test_labels=labels[:100],
                   class_names=("even", "odd"))
"""
WITH_LIMIT = (
    "from job.training import devices; devices.memory_limit = lambda: {}; from job.__main__ import main; main()"
)


def run_with_limit(limit: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`mnist-job run` as if the pod had this memory limit; a Python expression in bytes."""
    (folder / "own_memory.py").write_text(OWN)
    common = [flag for flag in QUICK if not flag.startswith("--data")]
    return subprocess.run(
        [sys.executable, "-c", WITH_LIMIT.format(limit), "run", *common, *flags],
        cwd=folder,
        env=job_environment({"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"}),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_allocation_above_the_limit_fails_inside_the_block_only() -> None:
    code = (
        "import numpy as np; from job.training.devices import held_to_memory, memory_in_use\n"
        "with held_to_memory(memory_in_use()['RssAnon'] + 10_000_000):\n"
        "    np.empty(100_000_000, np.uint8)\n"
        "    try: np.empty(700_000_000, np.uint8)\n"
        "    except MemoryError as error: print('refused:', error)\n"
        "np.empty(700_000_000, np.uint8)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: Unable to allocate 668. MiB for an array with shape (700000000,)")


def test_no_limit_changes_nothing() -> None:
    with held_to_memory(None):
        assert memory_in_use()["RssAnon"] > 0
    limit = memory_limit()
    assert limit is None or limit > 0


@pytest.mark.tf
class TestRuns:
    def test_own_source_that_asks_for_more_ends_with_64(self, tmp_path: Path) -> None:
        flags = ("--data.source=own_memory:make", "--data.args={megabytes: 2500}")
        done = run_with_limit("1_500_000_000", *flags, folder=tmp_path)
        assert done.returncode == 64, done.stderr
        assert (
            "do not fit into the pod's memory limit of 1500 MB: loading them asked for more: Unable to allocate"
            in done.stderr
        )
        assert "raise the limit, or return a numpy.memmap" in done.stderr

    def test_examples_that_leave_no_room_for_training_end_with_64(self, tmp_path: Path) -> None:
        flags = ("--data.source=own_memory:make", "--data.args={megabytes: 150}")
        done = run_with_limit("devices.memory_in_use()['RssAnon'] + 160_000_000", *flags, folder=tmp_path)
        assert done.returncode == 64, done.stderr
        assert "they take 150 MB, this process" in done.stderr
        assert "and training at least 100 MB more; raise the limit" in done.stderr
