"""What must hold after every trial, read from the bare objects with no code of the job."""

import hashlib
import json
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Objects = Mapping[str, bytes]


class TrialFailed(AssertionError):  # noqa: N818 - the answer of a trial
    """A promise was broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Everything about a result that may not depend on what happened on the way."""

    state_digest: str
    weights_digest: str
    scores: str
    history: str
    decisions: str
    steps: int
    examples: int


def objects_of_folder(folder: Path) -> Objects:
    """Every finished object below a `file:` store."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".tmp-")
    }


def objects_of_bucket(endpoint: str, bucket: str, *, prefix: str) -> Objects:
    """Every object of a bucket, by plain HTTP; keys without the prefix."""
    query = urllib.parse.urlencode({"list-type": 2, "prefix": prefix})
    tree = ET.fromstring(_get(f"{endpoint}/{bucket}?{query}"))
    keys = [element.text or "" for element in tree.iter() if element.tag.endswith("}Key") or element.tag == "Key"]
    return {key.removeprefix(prefix): _get(f"{endpoint}/{bucket}/{urllib.parse.quote(key)}") for key in keys}


def _get(url: str) -> bytes:
    # moto wants to see that somebody signed, and does not look further.
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=reader/20260101/us-east-1/s3/aws4_request"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=signed), timeout=30) as reply:
        data: bytes = reply.read()
        return data


def check_whole(objects: Objects, *, run: str = "r") -> dict[str, Any]:
    """The COMMIT of a run, when every object that it names is there as committed."""
    commit = json.loads(objects[f"runs/{run}/COMMIT.json"])
    for file in commit["files"]:
        data = objects.get(file["key"])
        if data is None:
            raise TrialFailed(f"partial: the COMMIT names {file['key']}, which does not exist")
        if len(data) != file["num_bytes"] or hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise TrialFailed(f"partial: {file['key']} is not what was committed")
    if not commit["files"]:
        raise TrialFailed("partial: the COMMIT names no file")
    result: dict[str, Any] = commit
    return result


def published(objects: Objects, *, run: str = "r") -> Published:
    """The result of a committed run, checked for wholeness and for what must not be left over."""
    commits = [key for key in objects if key.endswith("COMMIT.json")]
    if commits != [f"runs/{run}/COMMIT.json"]:
        raise TrialFailed(f"one COMMIT is expected, found {commits}")
    commit = check_whole(objects, run=run)
    winner = f"runs/{run}/attempts/{commit['attempt']}/"
    left = [key for key in objects if "/checkpoints/" in key or ("/model/" in key and not key.startswith(winner))]
    if left:
        raise TrialFailed(f"left over after the commit: {left[:3]}")
    check_champion(objects, commit)
    goodput = commit["goodput"]
    if abs(sum(goodput["seconds"].values()) - goodput["wall_seconds"]) > max(0.005 * goodput["wall_seconds"], 0.02):
        raise TrialFailed(f"goodput does not add up: {goodput}")
    metrics = json.loads(objects[f"{winner}metrics.json"])
    times = ("seconds", "examples_per_second")
    history = [{name: value for name, value in epoch.items() if name not in times} for epoch in metrics["history"]]
    return Published(
        state_digest=commit["state_digest"],
        weights_digest=commit["weights_digest"],
        scores=json.dumps(commit["metrics"], sort_keys=True),
        history=json.dumps(history, sort_keys=True),
        decisions=f"{commit.get('best_epoch')}, {commit.get('stopped_epoch')}",
        steps=commit["counters"]["steps"],
        examples=commit["counters"]["examples"],
    )


def check_champion(objects: Objects, commit: Mapping[str, Any]) -> None:
    """A run alone in its store is promoted once, says so, and is laid out for serving, whole."""
    run, model = commit["run"], commit["dataset"]["name"]
    pointers = [key for key in objects if "/champion/" in key]
    if pointers != [f"models/{model}/champion/000000001.json"]:
        raise TrialFailed(f"one champion version is expected, found {pointers}")
    pointer, gate = json.loads(objects[pointers[0]]), json.loads(objects[f"runs/{run}/gate.json"])
    if (pointer["run"], gate["verdict"], gate["version"], pointer["gate"]) != (run, "promoted", 1, gate):
        raise TrialFailed(f"champion and gate do not agree: {pointer}, {gate}")
    prefix, layout = f"runs/{run}/attempts/{commit['attempt']}/model/", f"models/{model}/versions/1/"
    expected = {key.removeprefix(prefix): data for key, data in objects.items() if key.startswith(prefix)}
    found = {key.removeprefix(layout): data for key, data in objects.items() if key.startswith(layout)}
    if found != expected:
        raise TrialFailed(f"the serving layout is not the committed model: {sorted(found)}")


def check_same(objects: Objects, reference: Published, *, run: str = "r") -> None:
    """The run is committed once, whole, clean, and with the very result of an undisturbed run."""
    found = published(objects, run=run)
    if found != reference:
        different = [
            name for name in Published.__dataclass_fields__ if getattr(found, name) != getattr(reference, name)
        ]
        raise TrialFailed(f"not the same as an undisturbed run: {', '.join(different)}")


def check_checkpoints(objects: Objects) -> int:
    """The number of checkpoints, each of which must be what its name says."""
    names = [key for key in objects if "/checkpoints/" in key]
    for name in names:
        if hashlib.sha256(objects[name]).hexdigest()[:16] not in name:
            raise TrialFailed(f"{name} is not what its name says")
    return len(names)
