"""`scripts/kind run` with values that start no run now."""

import os
import subprocess

import pytest

from tests.conftest import REPOSITORY, skip_or_fail
from tests.e2e.cluster import Namespace, run_command
from tests.e2e.conftest import IMAGE

_REPOSITORY, _, _TAG = IMAGE.rpartition(":")
_SMALL = (
    f"--set=image.repository={_REPOSITORY}", f"--set=image.tag={_TAG}", "--set=store.uri=", "--set=store.endpoint=null",
    "--set=store.region=null", "--set=credentials.existingSecret=", "--set=resources.requests.cpu=100m",
    "--set=persistence.size=100Mi",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("--set=schedule=@daily", "--set=activeDeadlineSeconds=600"), "no run now: the schedule starts them"),
        (("--set=suspend=true",), "the run is suspended"),
    ],
)
def test_kind_run_reports_no_failure_that_is_none(ns: Namespace, values: tuple[str, ...], said: str) -> None:
    context = run_command("kubectl", "config", "current-context").strip()
    if not context.startswith("kind-"):
        skip_or_fail("scripts/kind needs a cluster of kind")
    environ = os.environ | {"KIND_CLUSTER": context.removeprefix("kind-"), "KIND_NAMESPACE": ns.name}
    environ.pop("MNIST_DIR", None)
    done = subprocess.run(
        [str(REPOSITORY / "scripts" / "kind"), "run", *_SMALL, *values],
        env=environ, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stderr
