"""Every log event: its level, the sentence that says it, and its own fields with their types.

`logs.py` makes `message` of it; the table of docs/reference.md and schemas/log-event.json are made of it. A test compares the
places that log with it, so that none of them says more.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["info", "warning", "error"]

COMMON_FIELDS = {
    "time": "string",
    "level": "string",
    "severity": "string",
    "event": "string",
    "message": "string",
    "run": "string",
    "attempt": "string",
    "worker": "integer",
}
"""Of every event, in this order, before its own."""

_FAILURE = "reason:string stack:string?"
_MAX_MESSAGE_CHARACTERS = 1000
_MAX_PLAIN_FIELDS = 6
_CLAUSE = re.compile(r"\[([^\]]*)\]")
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is fixed about an event.

    Attributes:
        says: the sentence, with `{field}`; a clause in `[...]` is left out when a field in it is.
        own: `name:type` of each field of its own. `?` after a type: it may be missing; `type|null`: it may be unknown. A number
            is null too where it is not finite.
    """

    level: Level
    says: str
    own: str = ""

    def fields(self) -> Iterator[tuple[str, str, bool]]:
        """(name, type, whether it is always there)."""
        for part in self.own.split():
            name, _, kind = part.partition(":")
            yield name, kind.removesuffix("?"), not kind.endswith("?")


def _info(says: str, own: str = "") -> Kind:
    return Kind("info", says, own)


def _warning(says: str, own: str = "reason:string") -> Kind:
    return Kind("warning", says, own)


KINDS: Mapping[str, Kind] = {
    "run.start": _info(
        "An attempt at run {run} starts: {dataset}, {epochs} epochs, mnist-train {version}",
        "store:string dataset:string epochs:integer version:string image:string revision:string config_digest:string",
    ),
    "cluster.waiting": _info(
        "Waiting for workers {for_workers} since {seconds} s", "for_workers:string seconds:number"
    ),
    "data.prepare": _info("Dataset {dataset} is being prepared in {to}", "dataset:string to:string"),
    "data.ready": _info(
        "Dataset {dataset} is ready: {train_examples} training and {test_examples} test examples",
        "dataset:string digest:string train_examples:integer test_examples:integer "
        "validation_examples:integer? image_shape:array",
    ),
    "model.built": _info(
        "The model is built: {parameters} parameters, {precision}, {optimizer}",
        "parameters:integer precision:string optimizer:string",
    ),
    "train.start": _info(
        "Training starts: {epochs} epochs of {steps_per_epoch} steps, global batch {global_batch_size} over {replicas} replicas",
        "workers:integer replicas:integer global_batch_size:integer batch_size_per_replica:integer steps_per_epoch:integer "
        "epochs:integer compile:string seed:integer",
    ),
    "checkpoint.restored": _info("Training goes on from step {step} of {of}", "step:integer of:integer"),
    "train.progress": _info(
        "Step {step}, epoch {epoch}: loss {loss}, accuracy {accuracy}[, {eta_seconds} s left]",
        "step:integer epoch:integer loss:number accuracy:number examples_per_second:number eta_seconds:number",
    ),
    "epoch.end": _info(
        "Epoch {epoch} ended: loss {loss}, accuracy {accuracy}[, test accuracy {test_accuracy}]"
        "[, validation accuracy {val_accuracy}]",
        "step:integer epoch:integer loss:number accuracy:number test_loss:number? test_accuracy:number? val_loss:number? "
        "val_accuracy:number? metrics:object? learning_rate:number? seconds:number examples_per_second:number",
    ),
    "train.stopped_early": _info(
        "Training ends early after epoch {epoch}: {reason}; the best epoch is {best_epoch}",
        "step:integer epoch:integer best_epoch:integer reason:string",
    ),
    "checkpoint.saved": _info(
        "A checkpoint of step {step} is saved after {seconds} s", "step:integer key:string seconds:number"
    ),
    "evaluate.end": _info(
        "The model has test accuracy {test_accuracy} and loss {test_loss} on {examples} examples",
        "test_loss:number test_accuracy:number metrics:object? examples:integer",
    ),
    "export.end": _info(
        "The SavedModel is written: {files} files, {bytes} bytes", "files:integer bytes:integer weights_digest:string"
    ),
    "commit.done": _info("Run {run} is committed as {key}", "key:string weights_digest:string is_new:boolean"),
    "gate.reevaluate": _info("The champion {champion} is scored again: {reason}", "champion:string reason:string"),
    "gate.decided": _info(
        "The gate says {verdict} ({rule}): {reason}",
        "verdict:string rule:string reason:string model:string version:integer|null",
    ),
    "layout.done": _info(
        "Version {version} of {model} is in the serving layout", "model:string version:integer files:integer"
    ),
    "retention.removed": _info(
        "Retention has removed run {run_removed}: {objects} objects", "run_removed:string objects:integer bytes:integer"
    ),
    "metrics.pushed": _info("The Pushgateway has taken the metrics at the {at}", "url:string at:string"),
    "skip.other_code": _info(
        "The run is made although the inputs are the champion's: {reason}", "champion:string reason:string"
    ),
    "run.end": _info(
        "The attempt ended as {outcome} with exit code {code} after {seconds} s[, test accuracy {accuracy}]",
        "outcome:string code:integer step:integer accuracy:number commit:string|null seconds:number phases:object "
        "goodput:object|null peak_memory_bytes:integer",
    ),
    "run.interrupted": _warning(
        "The attempt was interrupted at step {step}: {reason}", "step:integer epoch:integer reason:string"
    ),
    "run.retired": _warning("Nothing is left to do: {reason}"),
    "run.not_bit_identical": _warning("The run may end in other bits: {reason}", "changed:object reason:string"),
    "skip.unknown_code": _warning(
        "The run is made although it may be the champion's: {reason}", "champion:string reason:string"
    ),
    "data.not_mnist": _warning("The data are not MNIST: {reason}"),
    "data.unpinned": _warning("Data are not checked by checksum: {reason}", "dataset:string files:array reason:string"),
    "data.leakage": _warning(
        "Test or validation images are in the training split: {reason}",
        "test:integer? validation:integer? reason:string",
    ),
    "data.unscaled": _warning(
        "The {split} split has floats up to {largest}: {reason}", "split:string largest:number reason:string"
    ),
    "data.cache_unusable": _warning(
        "The cached copy {path} cannot be used, and is {action}: {reason}", "path:string reason:string action:string"
    ),
    "data.cache_not_written": _warning("No copy of the data is kept in {path}: {reason}", "path:string reason:string"),
    "recipe.not_used": _warning("Arguments of model.compile are not used: {reason}", "arguments:array reason:string"),
    "checkpoint.failed": _warning(
        "The checkpoint of step {step} could not be saved: {reason}", "step:integer reason:string"
    ),
    "checkpoint.skipped": _warning("Checkpoint {key} is passed over: {reason}", "key:string reason:string"),
    "process.paused": _warning("The process did not run for {seconds} s: {reason}", "seconds:number reason:string"),
    "cluster.mixed": _warning("Workers {workers} differ from worker 0: {reason}", "workers:array reason:string"),
    "cluster.lost": _warning("Another worker is lost: {tensorflow}", "tensorflow:string"),
    "cluster.lost_after_commit": _warning("Another worker was lost after the commit, which stands: {reason}"),
    "store.retry": _warning(
        "A {verb} of {key} is tried again in {wait_seconds} s: {reason}",
        "verb:string key:string wait_seconds:number reason:string",
    ),
    "store.passed_over": _warning("{key} is passed over: {reason}", "store:string key:string reason:string"),
    "commit.other_weights": _warning(
        "Other weights are committed: {reason}", "committed:string ours:string reason:string"
    ),
    "commit.damaged": _warning("Run {run_of_commit} cannot be read: {reason}", "run_of_commit:string reason:string"),
    "gate.failed": _warning("The gate did not decide: {reason}", _FAILURE),
    "gate.other_decision": _warning(
        "The recorded decision of the gate is corrected: {standing} becomes {ours}", "ours:string standing:string"
    ),
    "gate.champion_unscored": _warning(
        "The champion {champion} could not be scored: {reason}", "champion:string reason:string"
    ),
    "gate.anchor_unreadable": _warning(
        "The anchor {run_of_anchor} cannot be read: {reason}", "run_of_anchor:string reason:string"
    ),
    "gate.clock_was_wrong": _warning(
        "A clock was wrong: {reason}", "champion:string champion_created:string created:string reason:string"
    ),
    "gate.coarse": _warning(
        "The gate sees less than it is asked to: {reason}",
        "examples:integer one_example:number smallest_loss:number max_accuracy_drop:number reason:string",
    ),
    "champion.gate_unreadable": _warning("The gate's record of the champion cannot be read: {reason}"),
    "champion.skipped": _warning(
        "Version {version} of {model} is passed over: {reason}", "model:string version:integer reason:string"
    ),
    "layout.failed": _warning("The serving layout was not written: {reason}", _FAILURE),
    "layout.not_finished": _warning("The serving layout is not whole: {reason}"),
    "cleanup.failed": _warning("Left-overs were not removed: {reason}", _FAILURE),
    "retention.failed": _warning("Retention did not end: {reason}", _FAILURE),
    "retention.skipped": _warning("Retention leaves run {run_skipped}: {reason}", "run_skipped:string reason:string"),
    "report.failed": _warning("The report was not made: {reason}", _FAILURE),
    "index.failed": _warning("The page of the model was not written: {reason}", _FAILURE),
    "index.skipped": _warning(
        "The page of the model leaves out run {run_of_skipped}: {reason}", "run_of_skipped:string reason:string"
    ),
    "tensorboard.not_stored": _warning("Some of what TensorBoard reads is not in the store: {reason}", "reason:string"),
    "summary.failed": _warning("The summary was not printed: {reason}", _FAILURE),
    "end.failed": _warning("The end was not told: {reason}", _FAILURE),
    "end.incomplete": _warning("{step} failed at the end: {reason}", "step:string reason:string stack:string?"),
    "termination_log.failed": _warning(
        "The termination message was not written: {reason}", "path:string reason:string"
    ),
    "output.lost": _warning("Some of {stream} was lost: {reason}", "stream:string reason:string"),
    "thread.failed": _warning("Thread {thread} failed: {reason}", "thread:string reason:string stack:string?"),
    "logs.not_stored": _warning(
        "Some of the log is not in the store: {reason}", "lines:integer? files:array? reason:string"
    ),
    "logs.skipped": _warning("A segment of the log is left out: {reason}"),
    "metrics.not_served": _warning("Nobody can read /metrics: {reason}", "port:integer address:string? reason:string"),
    "metrics.not_pushed": _warning(
        "The Pushgateway has not taken the metrics: {reason}", "url:string at:string reason:string"
    ),
    "metrics.clients_refused": _warning(
        "Clients of /metrics were refused, the last from {last_address}: {reason}",
        "no_descriptors:integer? too_slow:integer? too_many:integer? last_address:string reason:string",
    ),
    "fetch.failed": _warning(
        "fetch failed, and tries again in {again_in_seconds} s: {reason}", "reason:string again_in_seconds:number"
    ),
    "fetch.replaced": _warning("{folder} was replaced: {reason}", "folder:string reason:string"),
    "fetch.kept": _warning("{folder} is kept: {reason}", "folder:string reason:string"),
    "gc.skipped": _warning("gc leaves run {run_of_skipped}: {reason}", "run_of_skipped:string reason:string"),
    "gc.clock_ahead": _warning(
        "The clock is {seconds} s ahead of the store: {reason}", "seconds:integer reason:string"
    ),
    "training.stalled": Kind("error", "Training stalled: {reason}", "reason:string stacks:array"),
    "error": Kind(
        "error", "The attempt failed with exit code {code}: {reason}", "code:integer reason:string stack:string?"
    ),
}
"""Event -> what is fixed about it. Events of a run first, in the order in which they come; then warnings, then errors."""


def say(event: str, fields: Mapping[str, Any]) -> str:
    """One sentence about an event: that of the table, else its name with its first plain fields. Never fails."""
    kind = KINDS.get(event)
    text = _fill(kind.says, fields) if kind else ""
    return (text or _list(event, fields))[:_MAX_MESSAGE_CHARACTERS]


def _fill(says: str, fields: Mapping[str, Any]) -> str:
    """The sentence with its values; empty when a field of it is missing outside of a clause."""
    whole = _CLAUSE.sub(lambda clause: clause[1] if _are_known(clause[1], fields) else "", says)
    if any(name not in fields for name in _NAME.findall(whole)):
        return ""
    return _NAME.sub(lambda name: _short(fields[name[1]]), whole)


def _are_known(text: str, fields: Mapping[str, Any]) -> bool:
    return all(fields.get(name) is not None for name in _NAME.findall(text))


def _list(event: str, fields: Mapping[str, Any]) -> str:
    own = [name for name, value in fields.items() if name not in COMMON_FIELDS and not isinstance(value, (dict, list))]
    return " ".join([event, *(f"{name}={_short(fields[name])}" for name in own[:_MAX_PLAIN_FIELDS])])


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def make_schema() -> dict[str, Any]:
    """JSON Schema of one line of the log."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of the log of mnist-train",
        "type": "object",
        "required": list(COMMON_FIELDS),
        "properties": {name: {"type": type_} for name, type_ in COMMON_FIELDS.items()}
        | {"event": {"enum": list(KINDS)}},
        "allOf": [
            {"if": {"properties": {"event": {"const": event}}}, "then": _to_schema(kind)}
            for event, kind in KINDS.items()
        ],
        "unevaluatedProperties": False,
    }


def _to_schema(kind: Kind) -> dict[str, Any]:
    own = {name: {"type": _types_of(type_)} for name, type_, _ in kind.fields()}
    return {
        "properties": {"level": {"const": kind.level}, "severity": {"const": kind.level.upper()}} | own,
        "required": [name for name, _, is_required in kind.fields() if is_required],
    }


def _types_of(text: str) -> str | list[str]:
    names = text.split("|") + (["null"] if text == "number" else [])
    return names[0] if len(names) == 1 else names
