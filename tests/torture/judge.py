"""What every change of a store must keep, said from the bare objects with no code of the job's protocol."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tests.torture.checks import TrialFailed

_LAST_FILE = "saved_model.pb"


class Judge:
    """Looks at each change just before it takes effect, and remembers what was ever committed."""

    def __init__(self, objects: Mapping[str, bytes], *, model: str, keep_versions: int) -> None:
        self._objects = objects
        self._model = model
        self._keep_versions = keep_versions
        self._models: dict[str, dict[str, bytes]] = {}
        """Run -> the files of its committed model."""
        self.pointers: list[dict[str, Any]] = []

    def is_kept(self, version: int) -> bool:
        """Whether a champion version is among the newest, which stay whole."""
        return version > len(self.pointers) - self._keep_versions

    def model_of_version(self, version: int) -> dict[str, bytes]:
        """Name below the serving folder -> content."""
        return self._models[self.pointers[version - 1]["run"]]

    def written(self, key: str, data: bytes, *, before: bytes | None) -> None:
        """An object is made, or replaced."""
        kind, run, *rest = key.split("/")
        if kind == "models":
            self._written_of_model(key, data, before=before)
        elif rest == ["COMMIT.json"]:
            self._written_commit(run, json.loads(data), before=before)
        elif before is not None and not (rest == ["gate.json"] and self._is_of_own_move(json.loads(data))):
            raise TrialFailed(f"{key} is replaced")

    def deleted(self, key: str) -> None:
        """An object goes."""
        kind, run, *rest = key.split("/")
        if kind == "models":
            self._deleted_of_model(key, rest)
            return
        standing = self._standing(run)
        if rest[0] in ("COMMIT.json", "run.json", "claims"):
            raise TrialFailed(f"{key} is deleted")
        if rest[0] == "retirements" or (standing and "abandoned" in standing):
            return
        if rest[0] == "checkpoints":
            if standing is None and max(self._below(f"runs/{run}/checkpoints/")) == key:
                raise TrialFailed(f"the newest checkpoint of a run without a result is deleted: {key}")
        elif standing is None or any(file["key"] == key for file in standing["files"]) or rest[0] == "gate.json":
            raise TrialFailed(f"{key} is deleted, and something needs it")

    def check_gate(self, run: str) -> None:
        """The decision that is stored is the one that the champion's history tells of."""
        gate = json.loads(self._objects[f"runs/{run}/gate.json"])
        made = [pointer["version"] for pointer in self.pointers if pointer["by"] == "gate" and pointer["run"] == run]
        if made != ([gate["version"]] if gate["verdict"] == "promoted" else []):
            raise TrialFailed(f"gate.json of {run} says {gate['verdict']}, version {gate['version']}; made: {made}")

    def was_committed(self, run: str) -> bool:
        """Whether it ever had a result."""
        return run in self._models

    def is_marked(self, run: str) -> bool:
        """Whether somebody has begun to remove it."""
        return bool(self._below(f"runs/{run}/retirements/"))

    def _is_of_own_move(self, record: dict[str, Any]) -> bool:
        return any(pointer["gate"] == record for pointer in self.pointers)

    def _written_commit(self, run: str, record: dict[str, Any], *, before: bytes | None) -> None:
        if "abandoned" in record:
            if self.was_committed(run) != ("by" in record):
                raise TrialFailed(f"the record that closes {run} does not say whether it was committed")
            if before is None or "abandoned" in json.loads(before):
                return
            if run in {pointer["run"] for pointer in self.pointers[-self._keep_versions :]}:
                raise TrialFailed(f"run {run} is removed, and a kept champion version names it")
            if self.pointers and run in {anchor["run"] for anchor in self.pointers[-1]["anchors"]}:
                raise TrialFailed(f"run {run} is removed, and candidates are measured by it")
            if json.loads(before).get("config", {}).get("promotion", {}).get("model_name", self._model) != self._model:
                raise TrialFailed(f"run {run} is removed, and it is of another model")
            return
        if before is not None:
            raise TrialFailed(f"the COMMIT of {run} is replaced")
        prefix = f"runs/{run}/attempts/{record['attempt']}/"
        for file in record["files"]:
            data = self._objects.get(file["key"])
            if data is None or hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise TrialFailed(f"partial: the COMMIT of {run} names {file['key']}, which is not there")
        names = [file["key"].removeprefix(prefix) for file in record["files"]]
        self._models[run] = {
            name.removeprefix("model/"): self._objects[prefix + name] for name in names if name.startswith("model/")
        }

    def _written_of_model(self, key: str, data: bytes, *, before: bytes | None) -> None:
        if before is not None:
            raise TrialFailed(f"{key} is replaced")
        _, _, kind, *rest = key.split("/")
        if kind == "champion":
            self._moved(json.loads(data))
            return
        version, name = int(rest[0]), "/".join(rest[1:])
        if version > len(self.pointers) or self.model_of_version(version).get(name) != data:
            raise TrialFailed(f"{key} is not of the model that version {version} names")
        missing = self.model_of_version(version).keys() - {name} - self._names_of_version(version)
        if name == _LAST_FILE and missing and version > self.newest_whole():
            raise TrialFailed(f"version {version} becomes the newest to load, without {sorted(missing)}")

    def _moved(self, pointer: dict[str, Any]) -> None:
        version, run, before = pointer["version"], pointer["run"], self.pointers[-1] if self.pointers else None
        standing = self._standing(run)
        if standing is None or "abandoned" in standing or standing["weights_digest"] != pointer["weights_digest"]:
            raise TrialFailed(f"version {version} names run {run}, which is not committed")
        if version != len(self.pointers) + 1:
            raise TrialFailed(f"version {version} follows version {len(self.pointers)}")
        if (pointer["from_version"], pointer["from_run"]) != (
            (before["version"], before["run"]) if before else (None, None)
        ):
            raise TrialFailed(f"version {version} was made on top of {pointer['from_version']}, {pointer['from_run']}")
        earlier = [other for other in self.pointers if other["run"] == run]
        if pointer["by"] == "rollback":
            if not earlier:
                raise TrialFailed(f"version {version} goes back to {run}, which was never champion")
        elif not pointer["forced"] and before and pointer["created"] < before["created"]:
            raise TrialFailed(f"version {version}: an older run displaces a newer one")
        if pointer["by"] == "gate" and any(other["by"] == "gate" for other in earlier):
            raise TrialFailed(f"the gate decides twice about {run}")
        if pointer["by"] != "gate" and any(other["who"] == pointer["who"] for other in self.pointers):
            raise TrialFailed(f"{pointer['who']} moves the champion twice")
        self.pointers.append(pointer)

    def _deleted_of_model(self, key: str, rest: list[str]) -> None:
        if rest[0] == "champion":
            raise TrialFailed(f"{key} is deleted")
        version, name = int(rest[1]), "/".join(rest[2:])
        if name != _LAST_FILE and version == self.newest_whole():
            raise TrialFailed(f"{key} is deleted while its version is loadable")
        if name == _LAST_FILE and self._is_whole(version) and version > self.newest_whole() - self._keep_versions:
            raise TrialFailed(f"{key} is deleted, and a server may need it")

    def newest_whole(self) -> int:
        """The highest version that a server can load; 0 when there is none."""
        return max(filter(self._is_whole, range(1, len(self.pointers) + 1)), default=0)

    def check_layouts(self) -> None:
        """No version is loadable and half."""
        for version in range(1, len(self.pointers) + 1):
            if _LAST_FILE in self._names_of_version(version) and not self._is_whole(version):
                raise TrialFailed(f"version {version} stays loadable, and is not whole")

    def _is_whole(self, version: int) -> bool:
        return self.model_of_version(version).keys() <= self._names_of_version(version)

    def _standing(self, run: str) -> dict[str, Any] | None:
        data = self._objects.get(f"runs/{run}/COMMIT.json")
        return json.loads(data) if data is not None else None

    def _names_of_version(self, version: int) -> set[str]:
        prefix = f"models/{self._model}/versions/{version}/"
        return {key.removeprefix(prefix) for key in self._below(prefix)}

    def _below(self, prefix: str) -> list[str]:
        return [key for key in self._objects if key.startswith(prefix)]
