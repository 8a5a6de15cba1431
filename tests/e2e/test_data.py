"""Real MNIST in a cluster without internet: from a mirror in the store, and through tensorflow-datasets with a cache volume."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import IDX_FILES
from tests.e2e.cluster import Namespace, Object
from tests.e2e.conftest import keys_in, start_tool_pod, unpack_into

_QUICK: Object = {"train": {"epochs": 1, "optimizer": "sgd", "global_batch_size": 128}}


@contextmanager
def _pod_with_files(
    ns: Namespace, mnist_dir: Path, *, endpoint: str = "", folder: str, claim: str = ""
) -> Iterator[str]:
    """A pod like that of scripts/kind that has the four files in `folder`; yields its name."""
    pod = start_tool_pod(ns, endpoint=endpoint, claim=claim)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in IDX_FILES:
            archive.add(mnist_dir / name, arcname=name)
    unpack_into(ns, pod, folder, packed.getvalue())
    yield pod
    ns.kubectl("delete", "pod", pod, "--grace-period=1")


def _data_of(ns: Namespace, job: str) -> tuple[str, str, bool]:
    """Name and digest of the data that the Job's pod trained on, and whether it had to prepare it."""
    assert ns.wait_for_end(job) == "Complete"
    events = ns.events_of(ns.pods(job)[-1]["metadata"]["name"])
    ready = next(event for event in events if event["event"] == "data.ready")
    return ready["dataset"], ready["digest"], any(event["event"] == "data.prepare" for event in events)


@pytest.mark.slow
def test_mnist_from_a_mirror_in_the_store_and_from_a_cache_on_a_volume_is_the_same(
    ns: Namespace, s3: Object, mnist_dir: Path
) -> None:
    keys = keys_in(ns)
    mirror = f"s3://models/{ns.name}/mnist"
    with _pod_with_files(ns, mnist_dir, endpoint=s3["endpoint"], folder="/tmp/mnist") as pod:
        ns.kubectl("exec", pod, "--", "mnist-job", "data", "prepare", "--from", "/tmp/mnist", "--to", mirror)
    mirrored = ns.install("mirrored", keys, {"store": s3}, _QUICK, {"data": {"source": "idx", "uri": mirror}})
    dataset, digest, is_prepared = _data_of(ns, mirrored)
    assert (dataset, is_prepared) == ("mnist", False)

    cached = {"data": {"source": "tfds", "uri": "/data/downloads"}, "persistence": {"size": "1Gi"}}
    ns.install("cached", cached, _QUICK, {"suspend": True})
    with _pod_with_files(ns, mnist_dir, folder="/data/downloads", claim="cached-store"):
        pass
    assert _data_of(ns, ns.install("cached", cached, _QUICK)) == ("mnist", digest, True)
    assert _data_of(ns, ns.install("cached", cached, _QUICK, {"run": {"suffix": "again"}})) == ("mnist", digest, False)
