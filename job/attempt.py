"""One attempt at a run: its phases, in their order. READ THIS FIRST. With several workers this is what worker 0 does, the chief
(`assist.py` has the others).

What is trained is behind `Workload` (`training/workload.py`). Tests put a plain one behind it, and kill an attempt at every step,
thousands of times a minute, without TensorFlow.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from job import clock, contract
from job.config import Config
from job.contract import Event
from job.digests import canonical_json, sha256_hex
from job.errors import IntegrityError, JobError, PeerLostError, RetiredError
from job.logs import emit, warn
from job.observe.phases import Phases
from job.observe.stored_logs import StoredLog
from job.observe.view import View
from job.registry import champion, serving
from job.registry.champion import Move
from job.registry.gate import Gate, warn_of_resolution
from job.registry.retention import apply_retention
from job.registry.rules import GateRecord
from job.registry.unchanged import is_unchanged
from job.runs import checkpoint as checkpoints
from job.runs import read, write
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.runs.goodput import Ledger
from job.runs.identity import AttemptIdentity, is_result_of, with_recorded_compile
from job.runs.lineage import Device, Lineage, bits_depend_on, describe_attempt
from job.runs.read import CommittedRun, StoredFile
from job.signals import StopSignal
from job.store.open import open_store
from job.store.store import Store, Traffic
from job.texts import one_line, stack_of
from job.training import agreement
from job.training.loop import Training
from job.training.tensorboard import EventFiles
from job.training.watchdog import Watchdog
from job.training.workers import ALONE, NothingToTrainError, Workers
from job.training.workload import Prepared, Results, Workload

_LONGEST_MODEL_FILE = "model/variables/variables.data-00000-of-00001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended well.

    Attributes:
        committed: the run's result, made by this attempt or another; the champion's run when the attempt was skipped.
        is_new: False when another attempt had committed the run before.
        model_location: URI of the SavedModel.
        is_skipped: True when the champion came from the same inputs, image and code.
        gate: what gate.json says; None when promotion is not enabled, and when nothing had to be decided.
    """

    committed: CommittedRun
    is_new: bool
    model_location: str
    is_skipped: bool = False
    gate: GateRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an attempt is given from outside: facts about its place, and the ways to be stopped and seen.

    Attributes:
        identity: the run, and the wanted attempt id; `_register_attempt` adds -2, -3, ... when the store has it already.
        workers: those of the run, and which of them this process is.
        traffic: counts the requests to the store.
        stored_log: `run` attaches the store; then the checkpoint writer writes one log segment after each checkpoint.
        on_stall: the watchdog calls it when training has stalled, with a reason and all stacks; it must end the process.
    """

    identity: AttemptIdentity
    pod: contract.Pod
    environ: MutableMapping[str, str]
    workers: Workers
    phases: Phases
    stop: StopSignal
    view: View
    traffic: Traffic
    stored_log: StoredLog
    on_stall: Callable[[str, str], None]


def run(config: Config, surroundings: Surroundings, workload: Workload) -> Outcome:
    """Train, evaluate, export, commit and decide about the champion. A later attempt skips what the store already has.

    Raises:
        RetiredError: the run had its result, which retention removed: nothing is left to do.
        JobError: its class gives the exit code; before COMMIT readers see no result of this run.
        StopRequested: SIGTERM, SIGINT or SIGHUP.
    """
    phases, run_id = surroundings.phases, surroundings.identity.run
    with phases("store"):
        store = open_store(config.store, environ=surroundings.environ, traffic=surroundings.traffic)
        store.check_keys(_longest_keys(config, surroundings.identity))
        store.list_objects(contract.run_prefix(run_id))  # a missing bucket or a wrong key is known at once
        workers = surroundings.workers
        if workers.are_several and read.is_over(store, run_id):
            workers = ALONE  # nothing is left to train: no other worker is needed
    surroundings.stored_log.attach(store)
    prepared = _prepare(config, store, surroundings=surroundings, workload=workload, workers=workers)
    show_prepared(prepared, surroundings)
    if config.run.skip_if_unchanged:
        with phases("store"):
            unchanged = _find_unchanged(config, store, surroundings=surroundings, prepared=prepared)
        if unchanged:
            prepared.exchange(is_over=True)
            return unchanged
    try:
        committed, surroundings = _find_or_make_result(
            config, store, surroundings=surroundings, workload=workload, prepared=prepared
        )
    except RetiredError:
        _dismiss(prepared)
        raise
    return finish(config, store, committed, surroundings=surroundings, workload=workload)


def _longest_keys(config: Config, identity: AttemptIdentity) -> list[str]:
    """Of each folder that the run writes to, the longest key or a longer one: an attempt may get a number behind its id."""
    run_id, attempt_id = identity.run, f"{identity.attempt}-999"
    keys = [
        f"{contract.attempt_prefix(run_id, attempt_id=attempt_id)}{_LONGEST_MODEL_FILE}",
        f"{contract.checkpoint_prefix(run_id)}{'0' * 64}",
        contract.log_key(run_id, attempt_id=attempt_id, number=0),
        contract.gate_key(run_id),
    ]
    if config.promotion.enabled:
        model, version = champion.model_name(config, dataset=config.data.name), 999_999_999
        keys += [
            contract.claim_key(run_id, model=model, version=version),
            contract.champion_key(model, version=version),
            f"{contract.version_prefix(model, version=version)}{_LONGEST_MODEL_FILE}",
        ]
    return keys


def _prepare(
    config: Config, store: Store, *, surroundings: Surroundings, workload: Workload, workers: Workers
) -> Prepared:
    """Bring everything together; alone, when the run is committed while the others are waited for."""
    phases, run_id = surroundings.phases, surroundings.identity.run

    def look() -> None:
        if read.is_over(store, run_id):
            raise NothingToTrainError

    def prepare(workers: Workers) -> Prepared:
        with phases("store"):
            recorded = read.recorded_compile(store, run_id, cpu_replicas=config.cluster.cpu_replicas)
        return workload.prepare(
            config, run_id=run_id, phases=phases, workers=workers, look=look, recorded_compile=recorded
        )

    try:
        return prepare(workers)
    except NothingToTrainError:
        return prepare(ALONE)


def show_prepared(prepared: Prepared, surroundings: Surroundings) -> None:
    """Say what is trained, and on what.

    Raises:
        StopRequested: a signal came while all was prepared, and an import swallowed the interruption.
    """
    surroundings.stop.check()
    surroundings.view.prepared(
        dataset=prepared.dataset.name,
        digest=prepared.dataset.digest,
        num_replicas=len(prepared.device.names),
        num_workers=prepared.device.num_workers,
    )


def _find_or_make_result(
    config: Config, store: Store, *, surroundings: Surroundings, workload: Workload, prepared: Prepared
) -> tuple[CommittedRun, Surroundings]:
    """The run's COMMIT, which this attempt makes where there is none; and the surroundings with the attempt's own id.

    Raises:
        RetiredError: the settings are those of the run, and retention has removed its result.
    """
    run_id = surroundings.identity.run
    with surroundings.phases("store"):
        digest = write.begin_run(store, run_id, inputs=prepared.inputs, config=config.model_dump(mode="json"))
        committed = read.read_commit(store, run_id)
    if committed is None:
        return _make_result(
            config, store, surroundings=surroundings, workload=workload, prepared=prepared, result_digest=digest
        )
    read.check_same_result(committed, result_digest=digest)
    prepared.exchange(is_over=True)
    return committed, surroundings


def _make_result(
    config: Config,
    store: Store,
    *,
    surroundings: Surroundings,
    workload: Workload,
    prepared: Prepared,
    result_digest: str,
) -> tuple[CommittedRun, Surroundings]:
    """Train and publish; returns the COMMIT that is recorded, and the surroundings with the attempt's own id."""
    phases, run_id = surroundings.phases, surroundings.identity.run
    with phases("store"):
        store.sweep(contract.run_prefix(run_id))
        store.check_room(prepared.weight_bytes)
        lineage, stored = _register_attempt(config, store, surroundings, device=prepared.device)
        identity = AttemptIdentity(run=run_id, attempt=lineage.attempt)
        surroundings = replace(surroundings, identity=identity)
        ledger = _open_ledger(store, surroundings, lineage=lineage)
    warn_of_resolution(config.promotion, num_examples=prepared.num_test_examples)
    training = _train_from_newest(
        config,
        store,
        workload,
        prepared,
        surroundings=surroundings,
        ledger=ledger,
        lineage=lineage,
        result_digest=result_digest,
    )
    state_digests = _digests_of_state(training)
    results = workload.finish(training, phases=phases)
    surroundings.view.set(test_loss=results.scores.loss)
    surroundings.view.evaluated({each.name: each.recall for each in results.scores.classes}, results.scores.metrics)
    with phases("publish"):
        record = _describe_work(training, ledger)
        files = {**results.files, read.METRICS_FILE: _to_metrics_file(results, training=training, record=record)}
        stored += write.upload(store, run_id, attempt_id=identity.attempt, files=files)
        content = (
            record
            | state_digests
            | _to_commit(
                config,
                identity,
                prepared=prepared,
                results=results,
                result_digest=result_digest,
                validation_scores=training.validation_scores(),
                stored=stored,
                lineage=lineage,
            )
        )
        committed = write.commit(store, run_id, content=content)
    _dismiss(prepared)
    emit(
        Event.COMMIT_DONE,
        key=contract.commit_key(run_id),
        weights_digest=committed.weights_digest,
        is_new=committed.attempt == identity.attempt,
    )
    return committed, surroundings


def _train_from_newest(
    config: Config,
    store: Store,
    workload: Workload,
    prepared: Prepared,
    *,
    surroundings: Surroundings,
    ledger: Ledger,
    lineage: Lineage,
    result_digest: str,
) -> Training:
    """Build the model and train it to the last step, from the newest checkpoint where there is one."""
    phases = surroundings.phases
    max_bytes = checkpoints.max_bytes(weight_bytes=prepared.weight_bytes)
    load = partial(
        checkpoints.load_newest, store, surroundings.identity.run, result_digest=result_digest, max_bytes=max_bytes
    )
    with phases("restore"):
        checkpoint = load()
    ledger.are_workers_alike = _agree(config, prepared, lineage, checkpoint, result_digest=result_digest)
    with phases("build"):
        training = workload.build()
    train(
        config,
        training,
        checkpoint,
        _make_writer(config, surroundings, training=training),
        surroundings=surroundings,
        ledger=ledger,
        result_digest=result_digest,
        older=load if prepared.device.num_workers == 1 else None,  # several have agreed on this one
    )
    agreement.compare_weights(prepared.exchange, training)
    return training


def _digests_of_state(training: Training) -> dict[str, str]:
    """Of weights, optimizer and counters, with the variables' names and without what Keras counts in them."""
    return {
        "state_digest": training.state_digest(),
        "state_digest_by_position": training.state_digest(by_position=True),
    }


def _describe_work(training: Training, ledger: Ledger) -> dict[str, Any]:
    """What metrics.json and COMMIT.json both say about how the result was made."""
    return {
        "counters": training.counters(training.total_steps, ledger=ledger),
        "goodput": ledger.goodput(),
        "bit_identical": ledger.is_bit_identical,
        "chain": ledger.chain,
        **training.decisions(),
    }


def _agree(
    config: Config, prepared: Prepared, lineage: Lineage, checkpoint: Checkpoint | None, *, result_digest: str
) -> bool:
    """Agree with the other workers on what is trained, and from where; returns whether all compute equal bits."""
    said = agreement.tell_inputs(
        prepared.exchange,
        config=config,
        inputs=prepared.inputs,
        lineage=lineage,
        is_over=False,
        attempt=lineage.attempt,
        result_digest=result_digest,
        checkpoint=checkpoint.key if checkpoint else None,
    )
    return agreement.are_bits_alike(said)


def _dismiss(prepared: Prepared) -> None:
    """Tell the other workers that nothing is left to train: they end. The store stays as it is, whatever has become of them."""
    try:
        prepared.exchange(is_over=True)
    except PeerLostError as error:
        warn("cluster.lost_after_commit", reason=str(error))


def _to_commit(
    config: Config,
    identity: AttemptIdentity,
    *,
    prepared: Prepared,
    results: Results,
    result_digest: str,
    validation_scores: Mapping[str, float],
    stored: list[StoredFile],
    lineage: Lineage,
) -> dict[str, Any]:
    """The content of COMMIT.json without counters, goodput, chain and state digests."""
    settings = config.model_dump(mode="json")
    return {
        "format": write.FORMAT,
        "run": identity.run,
        "attempt": identity.attempt,
        "committed": clock.timestamp(),
        "result_digest": result_digest,
        "weights_digest": results.weights_digest,
        "dataset": asdict(prepared.dataset),
        "metrics": {
            "test_loss": results.scores.loss,
            "test_accuracy": results.scores.accuracy,
            "test_examples": results.scores.num_examples,
            **{f"test_{name}": value for name, value in results.scores.metrics.items()},
            **validation_scores,
        },
        "files": [asdict(file) for file in stored],
        "inputs": prepared.inputs,
        "config": settings,
        "config_digest": sha256_hex(canonical_json(settings)),
        "lineage": lineage.to_json(),
    }


def _find_unchanged(config: Config, store: Store, *, surroundings: Surroundings, prepared: Prepared) -> Outcome | None:
    """The champion, when another run has made it from the same inputs with the same code: all that is known of both is equal."""

    def is_same_result(run: CommittedRun) -> bool:
        inputs = prepared.inputs
        if config.train.compile == "auto":  # another CPU limit may have chosen another way to the same model
            inputs = with_recorded_compile(inputs, run.record)
        return is_result_of(inputs, run.record)

    def look_at(newest: Move) -> Outcome | None:
        if newest.run == surroundings.identity.run:
            return None
        committed = champion.commit_of(store, newest)
        if not is_unchanged(store, committed, pod=surroundings.pod, is_result_of=is_same_result):
            return None
        serving.finish_layout(store, newest)
        surroundings.view.champion_is(newest.to.accuracy, version=newest.version, when=newest.when)
        return replace(_outcome(store, committed, surroundings=surroundings), is_skipped=True)

    return champion.use_newest(store, champion.model_name(config, dataset=prepared.dataset.name), look_at)


def finish(
    config: Config, store: Store, committed: CommittedRun, *, surroundings: Surroundings, workload: Workload
) -> Outcome:
    """What follows a COMMIT, by this attempt or another: gate, serving layout, cleaning up.

    Raises:
        RetiredError: retention has removed the run meanwhile, or has begun to.
        JobError: the store failed while gate or layout were at work, or holds something damaged. The result stands.
    """
    view, gate = surroundings.view, None
    outcome = _outcome(store, committed, surroundings=surroundings)
    model = champion.model_name(config, dataset=committed.dataset.name)
    with surroundings.phases("publish"), after_commit("gate.failed", fatal=JobError):
        if config.promotion.enabled:
            gate = Gate(
                store=store,
                model=model,
                rules=config.promotion,
                who=f"attempt {surroundings.identity.attempt}",
                reevaluate=workload.predict_with,
            ).settle(committed)
            if gate.model == model:  # else it was decided about another name, when the run was committed
                view.decided(gate.verdict)
    with surroundings.phases("publish"), after_commit("layout.failed", fatal=JobError):
        newest = serving.finish_champions_layout(store, model)
        if newest:
            view.champion_is(newest.to.accuracy, version=newest.version, when=newest.when)
    with surroundings.phases("clean_up"):
        with after_commit("cleanup.failed"):
            write.clean_up(store, committed)
        with after_commit("retention.failed"):
            apply_retention(store, model, **config.retention.model_dump())
    surroundings.stop.check()  # it may have become a warning above: another attempt decides
    return replace(outcome, gate=gate)


@contextlib.contextmanager
def after_commit(event: str, *, fatal: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What follows a COMMIT: a fault in it costs a warning under that name. The committed run is never a failure by it.

    Raises:
        the errors that `fatal` names, unchanged.
    """
    try:
        yield
    except fatal:
        raise
    except Exception as error:  # noqa: BLE001 - the result stands
        is_known = isinstance(error, JobError)
        stack = {} if is_known else {"stack": stack_of(error)}
        warn(event, reason=one_line(str(error) if is_known else f"{type(error).__name__}: {error}"), **stack)


def _register_attempt(
    config: Config, store: Store, surroundings: Surroundings, *, device: Device
) -> tuple[Lineage, list[StoredFile]]:
    """Write attempt.json under an id that is free; returns its content and what was stored."""
    wanted = surroundings.identity
    attempt_id = write.free_attempt_id(store, wanted.run, wanted=wanted.attempt)
    lineage = describe_attempt(
        surroundings.pod,
        replace(wanted, attempt=attempt_id),
        device=device,
        environ=surroundings.environ,
        config=config,
    )
    files = {read.ATTEMPT_FILE: canonical_json(lineage.to_json())}
    return lineage, write.upload(store, wanted.run, attempt_id=attempt_id, files=files)


def _open_ledger(store: Store, surroundings: Surroundings, *, lineage: Lineage) -> Ledger:
    started_seconds = read.list_attempts(store, lineage.run)
    ledger = Ledger(
        phases=surroundings.phases,
        attempt=lineage.attempt,
        num_attempts=len(started_seconds),
        computed_on=bits_depend_on(lineage),
        first_started_seconds=min(started_seconds),
    )
    surroundings.view.registered(lineage.attempt, goodput=ledger.goodput)
    return ledger


def _make_writer(config: Config, surroundings: Surroundings, *, training: Training) -> CheckpointWriter:
    writes = [surroundings.stored_log.write_segment]
    if config.observe.tensorboard:
        writes.append(EventFiles(training, surroundings.identity).write_segment)

    def after_save(store: Store) -> None:
        for write_segment in writes:
            write_segment(store)

    return CheckpointWriter(
        open_store(config.store, environ=surroundings.environ, traffic=surroundings.traffic),
        run_id=surroundings.identity.run,
        schedule=config.checkpoint,
        on_saved=surroundings.view.checkpoint_saved,
        after_save=after_save,
    )


def train(
    config: Config,
    training: Training,
    checkpoint: Checkpoint | None,
    writer: CheckpointWriter | None,
    *,
    surroundings: Surroundings,
    ledger: Ledger,
    result_digest: str,
    older: Callable[..., Checkpoint | None] | None = None,
) -> None:
    """Go on from the checkpoint, or from the start, to the last step.

    Args:
        writer: None for a worker that is not the chief.
        older: reads the newest checkpoint whose key is not among `passed_over`; None where nobody may choose another.
    """
    surroundings.stop.check()  # the model's own code may have swallowed the interruption
    with surroundings.phases("restore"):
        checkpoint = restore_newest(training, checkpoint, older=older)
        if checkpoint:
            emit(Event.CHECKPOINT_RESTORED, step=checkpoint.step, of=training.total_steps)
            saved_seconds = checkpoint.meta["ledger"]["saved_seconds"]
            surroundings.view.checkpoint_restored(checkpoint.step, saved_seconds=saved_seconds)
        ledger.start(
            checkpoint.meta["ledger"] if checkpoint else None,
            step=checkpoint.step if checkpoint else 0,
            total_steps=training.total_steps,
            interval_seconds=config.checkpoint.interval_seconds,
        )
    surroundings.view.run_started(ledger.first_started_seconds)
    training.run(
        result_digest=result_digest,
        writer=writer,
        watchdog=Watchdog(
            timeout_seconds=config.observe.stall_timeout_seconds,
            phases=surroundings.phases,
            on_stall=surroundings.on_stall,
        ),
        ledger=ledger,
        stop=surroundings.stop,
        view=surroundings.view,
    )


def restore_newest(
    training: Training, checkpoint: Checkpoint | None, *, older: Callable[..., Checkpoint | None] | None
) -> Checkpoint | None:
    """The checkpoint, or the newest older one that is of this model, restored; None where there never was one.

    Raises:
        IntegrityError: none is.
    """
    bad: list[str] = []
    while checkpoint:
        try:
            training.restore(checkpoint)
            break
        except IntegrityError as error:
            if older is None:
                raise IntegrityError(f"{checkpoint.key}: {error}; delete it to go on from the one before") from error
            warn("checkpoint.skipped", key=checkpoint.key, reason=str(error))
            bad.append(checkpoint.key)
            checkpoint = older(passed_over=bad)
    return checkpoint


def _to_metrics_file(results: Results, *, training: Training, record: Mapping[str, Any]) -> bytes:
    history = [_finite(epoch.to_json()) for epoch in training.history]
    return canonical_json({"test": results.scores.to_json(), "history": history, **record})


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without the numbers of a validation split that JSON cannot hold."""
    known = {name: _finite(value) if isinstance(value, Mapping) else value for name, value in record.items()}
    return {name: value for name, value in known.items() if not isinstance(value, float) or math.isfinite(value)}


def _outcome(store: Store, committed: CommittedRun, *, surroundings: Surroundings) -> Outcome:
    surroundings.view.committed(contract.commit_key(committed.run), test_accuracy=committed.test_accuracy)
    attempt_folder = contract.attempt_prefix(committed.run, attempt_id=committed.attempt)
    return Outcome(
        committed=committed,
        is_new=committed.attempt == surroundings.identity.attempt,
        model_location=store.location(attempt_folder + read.MODEL_FOLDER.rstrip("/")),
    )
