"""The settings that decide a run's result, said once. The run id, the result digest and the chart's list are made of it.

Also: the seed, and `AttemptIdentity`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from job import clock
from job.config import SOURCES, Config, default_values
from job.digests import canonical_json, sha256_hex
from job.plugins import digest_of_sources

_WHOLE_SECTIONS = ("data", "model", "train")
"""All fields of these sections decide, new ones too, except those in `_PLACES`."""
_PLACES = ("data.cache_dir", "data.max_bytes")
"""Where something is, and what is refused, which changes no result."""
_SINGLE_FIELDS = ("run.seed", "run.suffix", "cluster.workers")
"""`cluster.workers` stands for the number of replicas: see `_deciding_values`."""
_ONLY_IN_ID = ("data.source", "data.uri", "data.dataset", "run.suffix")
"""Part of the run id and not of the result digest, which contains the digest of the dataset."""

ORIGINAL_FIELDS = (
    *("data.source", "data.uri", "data.dataset", "data.train_examples", "data.test_examples"),
    *("model.build", "model.hidden_units", "model.activation", "model.dropout"),
    *("train.epochs", "train.global_batch_size", "train.optimizer", "train.learning_rate"),
    *("train.precision", "train.compile"),
    *_SINGLE_FIELDS,
)
"""Fields of the first format: part of every id and digest. A newer one is left out of both while it has its default, so that
ids and digests of users who do not set it stay as they are."""

BY_POSITION = "model_by_position"
"""Of `code` in the inputs: recorded beside the digests, and part of none, so that they stay as they are (docs/adr/0020)."""

_DIGEST_CHARACTERS_IN_ID = 8
_MAX_BASE_CHARACTERS = 43


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptIdentity:
    """Which attempt this is, at which run."""

    run: str
    attempt: str


def deciding_fields(schema: type[Config] = Config) -> tuple[str, ...]:
    """The settings that decide a result, as `section.field`, in the order of the schema."""
    return tuple(name for name in default_values(schema) if _decides(name))


def _decides(name: str) -> bool:
    return name in _SINGLE_FIELDS or (name.partition(".")[0] in _WHOLE_SECTIONS and name not in _PLACES)


def _deciding_values(config: Config) -> dict[str, Any]:
    """`section.field` -> value, as plain JSON, without newer fields that have their default."""
    values, chosen = config.model_dump(mode="json"), {}
    for name, default in default_values(type(config)).items():
        section, _, field = name.partition(".")
        value = values[section][field]
        if _decides(name) and (name in ORIGINAL_FIELDS or value != default):
            chosen[name] = value
    # Replicas decide, workers are placement (docs/adr/0011). The format of one replica is that of the first version.
    chosen["cluster.workers"] = 1
    return chosen


def wanted_replicas(config: Config) -> int:
    """Replicas of the whole run, as far as the settings say it; GPUs that nobody asked for are not known before they are seen."""
    return config.cluster.workers * (config.cluster.expected_gpus or config.cluster.cpu_replicas)


def _replicas(num_replicas: int) -> dict[str, Any]:
    return {"replicas": num_replicas} if num_replicas > 1 else {}


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """One object for each whole section; fields of `run` and `cluster` are at the top level."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        (nested.setdefault(section, {}) if section in _WHOLE_SECTIONS else nested)[field] = value
    return nested


def make_run_id(config: Config) -> str:
    """The configured run id, or one made from the settings that decide the result and `run.suffix`.

    The same settings give the same id, so that a second start goes on or finds the committed run. With
    `run.seed=random` every start is a new run.
    """
    if config.run.id is not None:
        return config.run.id
    values = _deciding_values(config)
    if config.run.seed == "random":
        values["run.seed"] = clock.token(8)
    decides = {**_nest(values), **_replicas(wanted_replicas(config)), **_code_in_id(config)}
    words = re.sub(r"[^a-z0-9]+", "-", config.data.name.lower()).strip("-")
    base = words[:_MAX_BASE_CHARACTERS].rstrip("-") or "data"
    return f"local.{base}-{sha256_hex(canonical_json(decides))[:_DIGEST_CHARACTERS_IN_ID]}"


def own_functions(config: Config) -> dict[str, str]:
    """Setting -> the function of the user's own that it names."""
    named = {
        "data.source": None if config.data.source in SOURCES else config.data.source,
        "model.build": config.model.build,
    }
    return {field: name for field, name in named.items() if name}


def _code_in_id(config: Config) -> dict[str, Any]:
    """Digests of the user's own packages, where they can be found: changed code makes another run."""
    found = {field: digest_of_sources(name) for field, name in own_functions(config).items()}
    code = {field: digest for field, digest in found.items() if digest}
    return {"code": code} if code else {}


def resolve_seed(config: Config, *, run_id: str) -> int:
    """The seed of weights, order and dropout; `random` is derived from the run id, so that all attempts use one seed."""
    if config.run.seed != "random":
        return config.run.seed
    return int.from_bytes(hashlib.sha256(f"seed {run_id}".encode()).digest()[:4], "big")


def result_inputs(
    config: Config,
    *,
    seed: int,
    compile_with: str,
    num_replicas: int,
    dataset_digest: str,
    code: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Everything that decides the result of a run, and nothing else, as run.json records it.

    Args:
        num_replicas: of all workers together.
        code: what tells a model of the user's own from others (`own_model.describe`).
    """
    values = {name: value for name, value in _deciding_values(config).items() if name not in _ONLY_IN_ID}
    values |= {"run.seed": seed, "train.compile": compile_with}
    nested = _nest(values)
    of_data: dict[str, Any] = nested.pop("data")
    limits = {name: of_data.pop(name) for name in ("train_examples", "test_examples")}
    more = {"data": of_data} if of_data else {}
    of_code = {"code": dict(code)} if code else {}
    return {**nested, **limits, **more, "dataset_digest": dataset_digest, **_replicas(num_replicas), **of_code}


def digest_of_inputs(inputs: Mapping[str, Any]) -> str:
    """SHA-256 over everything that decides the result of a run."""
    code = {name: value for name, value in inputs.get("code", {}).items() if name != BY_POSITION}
    return sha256_hex(canonical_json({**inputs, "code": code} if code else inputs))


def _by_position(inputs: object) -> bytes | None:
    """The inputs with a model's names by position in the place of those that Keras counted; None where they are not recorded."""
    code = inputs.get("code") if isinstance(inputs, Mapping) else None
    if not isinstance(inputs, Mapping) or not isinstance(code, Mapping) or BY_POSITION not in code:
        return None
    return canonical_json({**inputs, "code": {**code, "model": code[BY_POSITION]}})


def is_result_of(inputs: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether these inputs decide the result that a run.json or COMMIT is about.

    In records of versions before ADR 11 the number of replicas did not decide the result, and in those before ADR 13 not the
    code of the user's own model.
    """
    digest, by_position = record.get("result_digest"), _by_position(inputs)
    if digest == digest_of_inputs(inputs) or (by_position and by_position == _by_position(record.get("inputs"))):
        return True
    unknown = _unknown_to(record)
    without = {name: value for name, value in inputs.items() if name not in unknown}
    return bool(unknown) and digest == digest_of_inputs(without)


def with_recorded_compile(inputs: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """These inputs with the `train.compile` that a run.json or COMMIT records; unchanged when it records none."""
    return {**inputs, "train": {**inputs["train"], "compile": compile_of(record) or inputs["train"]["compile"]}}


def compile_of(record: Mapping[str, Any]) -> str | None:
    """How the steps of the run are compiled that a run.json or COMMIT is about: `xla` or `graph`; None: it does not say so."""
    inputs = record.get("inputs")
    train = inputs.get("train") if isinstance(inputs, dict) else None
    recorded = train.get("compile") if isinstance(train, dict) else None
    return recorded if recorded in ("xla", "graph") else None


def _unknown_to(record: Mapping[str, Any]) -> set[str]:
    """Inputs that the version which wrote a record did not know."""
    config, recorded = record.get("config"), record.get("inputs")
    if not isinstance(config, dict) or not isinstance(recorded, dict):
        return set()
    cluster, model = config.get("cluster"), config.get("model")
    older = {"replicas": isinstance(cluster, dict) and "peer_timeout_seconds" not in cluster}
    older["code"] = isinstance(model, dict) and "args" not in model
    return {name for name, is_older in older.items() if is_older}


def differences(recorded: object, inputs: Mapping[str, Any]) -> str:
    """The first settings in which two runs differ, for an error message."""
    if not isinstance(recorded, dict):
        return "its settings are not recorded"
    before, now = _flatten(recorded), _flatten(inputs)
    changed = [
        f"{name} was {_shorten(before.get(name))!r}, is {_shorten(now.get(name))!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return "; ".join(changed[:3])


def _shorten(value: object) -> object:
    """A SHA-256 by its first characters; anything else as it is."""
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else value


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
