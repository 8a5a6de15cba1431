"""One attempt at a run: the phases, in their order. The only place that knows that order.

What is trained is behind `Workload`, so that the order itself can be killed thousands of times a minute without TensorFlow.
"""

import resource
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job import contract
from job.config import Config
from job.logs import emit
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.stored_logs import StoredLog
from job.observe.termination import Status
from job.registry import champion, serving
from job.registry.champion import Pointer
from job.registry.gate import Gate
from job.registry.retention import apply_retention
from job.registry.rules import Rules
from job.runs import checkpoint as checkpoints
from job.runs import identity, read, write
from job.runs.checkpoint_writer import CheckpointWriter, Schedule
from job.runs.goodput import Ledger
from job.runs.lineage import Device, bits_depend_on, describe_attempt
from job.signals import StopSignal
from job.store.store import Store, Traffic, is_store_uri, open_store
from job.training.loop import Training
from job.training.watchdog import Watchdog
from job.training.workload import Prepared, Results, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended well."""

    commit: dict[str, Any]
    """The COMMIT that stands."""
    is_new: bool
    """False when another attempt had committed the run before."""
    model_location: str
    """URI of the SavedModel."""
    is_skipped: bool = False
    """True when the champion came from the same inputs and image: `commit` is the champion's."""
    gate: Mapping[str, Any] | None = None
    """What gate.json says; None when promotion is not enabled, and when nothing had to be decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an attempt is given from outside: facts about its place, and the ways to be stopped and seen.

    Attributes:
        stored_log: gets the store, and a segment is written with every checkpoint.
        on_stall: is given the stacks of all threads when training makes no more steps; has to end the process.
    """

    pod: contract.Pod
    environ: MutableMapping[str, str]
    phases: Phases
    stop: StopSignal
    status: Status
    display: Display
    metrics: Metrics
    stored_log: StoredLog
    on_stall: Callable[[str], None]


def run(config: Config, around: Surroundings, workload: Workload) -> Outcome:
    """Train, evaluate, export, commit and decide about the champion; what is done already is not done again.

    Raises:
        JobError: typed, with its exit code; readers see nothing half-done then.
        StopRequested: SIGTERM or SIGINT.
    """
    phases, status, settings = around.phases, around.status, config.model_dump(mode="json")
    with phases("store"):
        store = open_configured_store(config, environ=around.environ, traffic=around.metrics.traffic)
        store.list_objects(contract.run_prefix(status.run))  # a missing bucket or a wrong key is known at once
    around.stored_log.attach(store)
    prepared = workload.prepare(config, run_id=status.run, phases=phases)
    around.metrics.describe(dataset=prepared.dataset["name"], replicas=len(prepared.device.names))
    if config.run.skip_if_unchanged:
        with phases("store"):
            unchanged = _find_unchanged(config, store, around=around, prepared=prepared)
        if unchanged:
            return unchanged
    with phases("store"):
        result_digest = write.claim_run(store, status.run, inputs=prepared.inputs, config=settings)
        committed = write.read_commit(store, status.run)
        if committed is not None:
            write.check_same_result(committed, run_id=status.run, result_digest=result_digest)
    if committed is not None:
        return finish(config, store, committed, around=around, workload=workload)
    with phases("store"):
        store.sweep(contract.run_prefix(status.run))
        attempt, stored = _register_attempt(store, around, device=prepared.device)
        ledger = _open_ledger(store, around, attempt=attempt)

    with phases("build"):
        training = workload.build()
    _train(config, training, store, around=around, ledger=ledger, result_digest=result_digest)
    results = workload.finish(training, phases=phases)
    around.metrics.set_recalls({of_class.name: of_class.recall for of_class in results.scores.classes})

    with phases("publish"):
        record = {
            "counters": training.counters(training.total_steps, ledger=ledger),
            "goodput": ledger.goodput(),
            "bit_identical": ledger.is_bit_identical,
            "chain": ledger.chain,
        }
        files = {**results.files, read.METRICS_FILE: _to_metrics_file(results, training=training, record=record)}
        stored += write.upload(store, status.run, attempt_id=status.attempt, files=files)
        content = {
            "format": write.FORMAT,
            "run": status.run,
            "attempt": status.attempt,
            "committed": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "result_digest": result_digest,
            "weights_digest": results.weights_digest,
            "state_digest": training.state_digest(),
            "dataset": prepared.dataset,
            "metrics": {
                "test_loss": results.scores.loss,
                "test_accuracy": results.scores.accuracy,
                "test_examples": results.scores.num_examples,
            },
            "files": [asdict(file) for file in stored],
            "inputs": prepared.inputs,
            "config": settings,
            "config_digest": identity.sha256_hex(identity.canonical_json(settings)),
            "lineage": attempt,
        }
        standing = write.commit(store, status.run, content=content | record)
    key, is_new = contract.commit_key(status.run), standing["attempt"] == status.attempt
    emit("commit.done", key=key, weights_digest=standing["weights_digest"], is_new=is_new)
    return finish(config, store, standing, around=around, workload=workload)


def open_configured_store(
    config: Config, *, environ: MutableMapping[str, str], uri: str | None = None, traffic: Traffic | None = None
) -> Store:
    """The store of the `store` section, or another one reached with the same settings."""
    return open_store(
        uri or config.store.uri,
        environ=environ,
        endpoint=config.store.endpoint,
        region=config.store.region,
        path_style=config.store.path_style,
        timeout_seconds=config.store.timeout_seconds,
        deadline_seconds=config.store.deadline_seconds,
        traffic=traffic,
    )


def folder_opener(config: Config, *, environ: MutableMapping[str, str]) -> Callable[[str], Store | Path]:
    """Opens `data.uri`, which may be a local folder or a store."""

    def open_folder(uri: str) -> Store | Path:
        return open_configured_store(config, environ=environ, uri=uri) if is_store_uri(uri) else Path(uri)

    return open_folder


def choose_cache_dir(config: Config, *, environ: MutableMapping[str, str]) -> Path:
    """Where prepared data is kept: as configured, or in the user's cache folder."""
    if config.data.cache_dir:
        return config.data.cache_dir.expanduser()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mnist-train"


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _find_unchanged(config: Config, store: Store, *, around: Surroundings, prepared: Prepared) -> Outcome | None:
    """The champion, when another run has made it from the same inputs with the same image."""

    def look_at(newest: Pointer) -> Outcome | None:
        if newest.run == around.status.run:
            return None
        standing = champion.commit_of(store, newest)
        is_same_image = standing.get("lineage", {}).get("image") == around.pod.image
        if not is_same_image or standing["result_digest"] != write.digest_of_inputs(prepared.inputs):
            return None
        serving.finish_layout(store, newest)
        around.status.champion_accuracy = newest.accuracy
        return replace(_outcome(store, standing, status=around.status), is_skipped=True)

    return champion.use_newest(store, champion.model_name(config, dataset=prepared.dataset["name"]), look_at)


def finish(
    config: Config, store: Store, standing: dict[str, Any], *, around: Surroundings, workload: Workload
) -> Outcome:
    """What follows a COMMIT, whoever made it: gate, serving layout, cleaning up."""
    status, gate = around.status, None
    outcome = _outcome(store, standing, status=status)
    model = champion.model_name(config, dataset=standing["dataset"]["name"])
    with around.phases("publish"):
        if config.promotion.enabled:
            gate = Gate(
                store=store,
                model=model,
                rules=Rules.of(config.promotion),
                who=f"attempt {status.attempt}",
                reevaluate=workload.predict_with,
            ).settle(standing)
            status.promoted = gate["verdict"] == "promoted"
        newest = serving.finish_champions_layout(store, model)
        if newest:
            status.champion_accuracy = newest.accuracy
    with around.phases("clean_up"):
        write.clean_up(store, standing)
        apply_retention(store, **config.retention.model_dump())
    return replace(outcome, gate=gate)


def _register_attempt(
    store: Store, around: Surroundings, *, device: Device
) -> tuple[dict[str, Any], list[write.StoredFile]]:
    """Write attempt.json under an id that is free; returns its content and what was stored."""
    status = around.status
    status.attempt = write.free_attempt_id(store, status.run, wanted=status.attempt)
    attempt = describe_attempt(
        around.pod, run_id=status.run, attempt_id=status.attempt, device=device, environ=around.environ
    )
    files = {write.ATTEMPT_FILE: identity.canonical_json(attempt)}
    return attempt, write.upload(store, status.run, attempt_id=status.attempt, files=files)


def _open_ledger(store: Store, around: Surroundings, *, attempt: Mapping[str, Any]) -> Ledger:
    started_seconds = write.list_attempts(store, around.status.run)
    ledger = Ledger(
        phases=around.phases,
        attempt=around.status.attempt,
        num_attempts=len(started_seconds),
        computed_on=bits_depend_on(attempt),
        first_started_seconds=min(started_seconds),
    )
    around.status.goodput = ledger.goodput
    return ledger


def _train(
    config: Config, training: Training, store: Store, *, around: Surroundings, ledger: Ledger, result_digest: str
) -> None:
    """Go on from the newest good checkpoint, or from the start, to the last step."""
    with around.phases("restore"):
        checkpoint = checkpoints.load_newest(store, around.status.run, result_digest=result_digest)
        if checkpoint:
            training.restore(checkpoint)
            around.status.step = checkpoint.step
            emit("checkpoint.restored", step=checkpoint.step, of=training.total_steps)
        ledger.start(
            checkpoint.meta["ledger"] if checkpoint else None,
            step=around.status.step,
            total_steps=training.total_steps,
            interval_seconds=config.checkpoint.interval_seconds,
        )
        around.metrics.count(training.counters(around.status.step, ledger=ledger))
    writer = CheckpointWriter(
        open_configured_store(config, environ=around.environ, traffic=around.metrics.traffic),
        run_id=around.status.run,
        schedule=Schedule(**config.checkpoint.model_dump()),
        on_saved=around.metrics.checkpoint_saved,
        after_save=around.stored_log.write_segment,
    )
    training.run(
        result_digest=result_digest,
        writer=writer,
        watchdog=Watchdog(timeout_seconds=config.observe.stall_timeout_seconds, on_stall=around.on_stall),
        ledger=ledger,
        stop=around.stop,
        status=around.status,
        display=around.display,
        metrics=around.metrics,
    )


def _to_metrics_file(results: Results, *, training: Training, record: Mapping[str, Any]) -> bytes:
    history = [asdict(epoch) for epoch in training.history]
    return identity.canonical_json({"test": results.scores.to_json(), "history": history, **record})


def _outcome(store: Store, standing: dict[str, Any], *, status: Status) -> Outcome:
    run_id, attempt_id = standing["run"], standing["attempt"]
    status.commit = contract.commit_key(run_id)
    status.accuracy = standing["metrics"]["test_accuracy"]
    model_location = store.location(contract.attempt_prefix(run_id, attempt_id=attempt_id) + "model")
    return Outcome(commit=standing, is_new=attempt_id == status.attempt, model_location=model_location)
