"""What decides a run's result, and the names and seeds derived from it."""

import hashlib
import json
import re
import secrets
from typing import Any

from job.config import Config

_DIGEST_CHARACTERS_IN_ID = 8
_MAX_BASE_CHARACTERS = 43


def canonical_json(value: object) -> bytes:
    """The one way in which objects are written before they are hashed or stored."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hex characters."""
    return hashlib.sha256(data).hexdigest()


def make_run_id(config: Config) -> str:
    """The configured run id, or one made from the settings that decide the result and `run.suffix`.

    The same settings give the same id, so that a second start goes on or finds the committed run. With
    `run.seed=random` every start is a new run.
    """
    if config.run.id is not None:
        return config.run.id
    decides = {
        "data": config.data.model_dump(mode="json", exclude={"cache_dir"}),
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "seed": secrets.token_hex(8) if config.run.seed == "random" else config.run.seed,
        "suffix": config.run.suffix,
        "workers": config.cluster.workers,
    }
    words = re.sub(r"[^a-z0-9]+", "-", config.data.name.lower()).strip("-")
    base = words[:_MAX_BASE_CHARACTERS].rstrip("-") or "data"
    return f"local.{base}-{sha256_hex(canonical_json(decides))[:_DIGEST_CHARACTERS_IN_ID]}"


def resolve_seed(config: Config, *, run_id: str) -> int:
    """The seed of weights, order and dropout; `random` is derived from the run id, so that attempts agree."""
    if config.run.seed != "random":
        return config.run.seed
    return int.from_bytes(hashlib.sha256(f"seed {run_id}".encode()).digest()[:4], "big")


def result_inputs(config: Config, *, seed: int, compile_with: str, dataset_digest: str) -> dict[str, Any]:
    """Everything that decides the result of a run, and nothing else."""
    return {
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json") | {"compile": compile_with},
        "seed": seed,
        "workers": config.cluster.workers,
        "train_examples": config.data.train_examples,
        "test_examples": config.data.test_examples,
        "dataset_digest": dataset_digest,
    }
