"""One attempt at a run: the phases, in their order. The only place that knows that order."""

import json
import resource
import tempfile
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from job import checkpoint as checkpoints
from job import cluster, contract, evaluation, export, identity, publish
from job.attempt import describe_attempt
from job.checkpoint_writer import CheckpointWriter, Schedule
from job.config import Config
from job.datasets import LoadedDataset, load_dataset
from job.model import build_model, model_input_shape
from job.observe.logs import emit, warn
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.stored_logs import StoredLog
from job.observe.termination import Status
from job.signals import StopSignal
from job.store import Store, is_store_uri, open_store
from job.training import Training
from job.watchdog import Watchdog

SAMPLE_IMAGES = 64
"""Test images kept beside the predictions, so that a model can be verified without its dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended well."""

    commit: dict[str, Any]
    """The COMMIT that stands."""
    is_new: bool
    """False when another attempt had committed the run before."""
    model_location: str
    """URI of the SavedModel."""


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
    stored_log: StoredLog
    on_stall: Callable[[str], None]


def run(config: Config, around: Surroundings) -> Outcome:
    """Train, evaluate, export and commit, unless the run is committed already.

    Raises:
        JobError: typed, with its exit code; readers see nothing half-done then.
        StopRequested: SIGTERM or SIGINT.
    """
    phases, status = around.phases, around.status
    with phases("store"):
        store = open_configured_store(config, environ=around.environ)
        store.list_objects(f"{contract.RUNS_PREFIX}{status.run}/")  # a missing bucket or a wrong key is known at once
    around.stored_log.attach(store)
    # Devices before data: tensorflow-datasets and own sources may start TensorFlow, which then keeps its threads.
    with phases("start_up"):
        cluster.prepare_process(around.environ)
        strategy = cluster.make_strategy(config.cluster)
    with phases("data"):
        data = _load_data(config, environ=around.environ)
    compile_with = _check_batch_and_resolve_compile(config, strategy, data)
    seed = identity.resolve_seed(config, run_id=status.run)
    inputs = identity.result_inputs(config, seed=seed, compile_with=compile_with, dataset_digest=data.digest)
    with phases("store"):
        result_digest = publish.claim_run(store, status.run, inputs=inputs, config=config.model_dump(mode="json"))
        committed = publish.read_commit(store, status.run)
        if committed is not None:
            publish.check_same_result(committed, run_id=status.run, result_digest=result_digest)
            publish.clean_up(store, committed)
            return _outcome(store, committed, status=status)
        store.sweep(f"{contract.RUNS_PREFIX}{status.run}/")
        status.attempt = publish.free_attempt_id(store, status.run, wanted=status.attempt)
        attempt = describe_attempt(
            around.pod,
            run_id=status.run,
            attempt_id=status.attempt,
            devices=list(strategy.extended.worker_devices),
            threads=cluster.threads(config.cluster),
            compile_with=compile_with,
        )
        files = {"attempt.json": identity.canonical_json(attempt)}
        stored = publish.upload(store, status.run, attempt_id=status.attempt, files=files)

    with phases("build"):
        training = Training(
            config, strategy, data=data, seed=seed, compile_with=compile_with, result_digest=result_digest
        )
    _emit_train_start(config, training, compile_with=compile_with, seed=seed, strategy=strategy)
    _train(config, training, store, around=around, result_digest=result_digest)

    with phases("evaluate"):
        probabilities = training.predict()
        scores = evaluation.score(probabilities, data.dataset.test_labels, class_names=data.dataset.class_names)
        emit("evaluate.end", test_loss=scores.loss, test_accuracy=scores.accuracy, examples=scores.num_examples)
    with phases("export"):
        files, weights_digest = _export(config, training.model, data, seed=seed, probabilities=probabilities)
    with phases("publish"):
        files["predictions.safetensors"] = _to_predictions_file(data, probabilities)
        files["metrics.json"] = _to_metrics_file(scores, training=training, phases=phases)
        stored += publish.upload(store, status.run, attempt_id=status.attempt, files=files)
        standing = publish.commit(
            store,
            status.run,
            content={
                "format": publish.FORMAT,
                "run": status.run,
                "attempt": status.attempt,
                "committed": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "result_digest": result_digest,
                "weights_digest": weights_digest,
                "dataset": {"name": data.name, "digest": data.digest},
                "metrics": {
                    "test_loss": scores.loss,
                    "test_accuracy": scores.accuracy,
                    "test_examples": scores.num_examples,
                },
                "files": [asdict(file) for file in stored],
                "inputs": inputs,
                "lineage": attempt,
            },
        )
    outcome = _outcome(store, standing, status=status)
    emit("commit.done", key=status.commit, weights_digest=standing["weights_digest"], is_new=outcome.is_new)
    with phases("clean_up"):
        publish.clean_up(store, standing)
    return outcome


def open_configured_store(config: Config, *, environ: MutableMapping[str, str], uri: str | None = None) -> Store:
    """The store of the `store` section, or another one reached with the same settings."""
    return open_store(
        uri or config.store.uri,
        environ=environ,
        endpoint=config.store.endpoint,
        region=config.store.region,
        path_style=config.store.path_style,
        timeout_seconds=config.store.timeout_seconds,
        deadline_seconds=config.store.deadline_seconds,
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


def _load_data(config: Config, *, environ: MutableMapping[str, str]) -> LoadedDataset:
    data = load_dataset(
        config.data,
        cache_dir=choose_cache_dir(config, environ=environ),
        open_folder=folder_opener(config, environ=environ),
    )
    emit(
        "data.ready",
        dataset=data.name,
        digest=data.digest,
        train_examples=len(data.dataset.train_labels),
        test_examples=len(data.dataset.test_labels),
        image_shape=list(data.dataset.image_shape),
    )
    if config.data.source == "digits":
        warn("data.not_mnist", reason="these are 1,797 small digits that come with the package, not MNIST")
    return data


def _check_batch_and_resolve_compile(config: Config, strategy: Any, data: LoadedDataset) -> str:
    num_replicas = strategy.num_replicas_in_sync
    cluster.check_batch(
        config.train.global_batch_size, num_replicas=num_replicas, num_examples=len(data.dataset.train_labels)
    )
    return cluster.resolve_compile(
        config.train,
        dropout=config.model.dropout,
        num_replicas=num_replicas,
        intra_op_threads=cluster.threads(config.cluster)["intra_op"],
    )


def _emit_train_start(config: Config, training: Training, *, compile_with: str, seed: int, strategy: Any) -> None:
    train, num_replicas = config.train, strategy.num_replicas_in_sync
    emit("model.built", parameters=training.model.count_params(), precision=train.precision, optimizer=train.optimizer)
    emit(
        "train.start",
        replicas=num_replicas,
        global_batch_size=train.global_batch_size,
        batch_size_per_replica=train.global_batch_size // num_replicas,
        steps_per_epoch=training.steps_per_epoch,
        epochs=train.epochs,
        compile=compile_with,
        seed=seed,
    )


def _train(config: Config, training: Training, store: Store, *, around: Surroundings, result_digest: str) -> None:
    """Go on from the newest good checkpoint, or from the start, to the last step."""
    with around.phases("restore"):
        checkpoint = checkpoints.load_newest(store, around.status.run, result_digest=result_digest)
        if checkpoint:
            training.restore(checkpoint)
            around.status.step = checkpoint.step
            emit("checkpoint.restored", step=checkpoint.step, of=training.total_steps)
    writer = CheckpointWriter(
        open_configured_store(config, environ=around.environ),
        run_id=around.status.run,
        schedule=Schedule(**config.checkpoint.model_dump()),
        after_save=around.stored_log.write_segment,
    )
    training.run(
        writer=writer,
        watchdog=Watchdog(timeout_seconds=config.observe.stall_timeout_seconds, on_stall=around.on_stall),
        phases=around.phases,
        stop=around.stop,
        status=around.status,
        display=around.display,
    )


def _export(
    config: Config, model: Any, data: LoadedDataset, *, seed: int, probabilities: evaluation.Probabilities
) -> tuple[dict[str, bytes], str]:
    """Write the SavedModel, check that it predicts what was evaluated, and return its files and weights digest."""
    dataset = data.dataset
    # Built again outside the scope: a mirrored model would be saved with its replicas.
    plain = build_model(
        config.model,
        image_shape=dataset.image_shape,
        num_classes=len(dataset.class_names),
        seed=seed,
        precision=config.train.precision,
    )
    plain.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory(prefix="mnist-export-") as temporary:
        folder = Path(temporary)
        export.save_model(
            plain,
            folder,
            image_shape=dataset.image_shape,
            input_shape=model_input_shape(config.model, image_shape=dataset.image_shape),
        )
        received = export.predict_with_export(folder, dataset.test_images[:SAMPLE_IMAGES])
        export.check_predictions(received, probabilities[:SAMPLE_IMAGES])
        digest = export.weights_digest(plain.get_weights())
        files = {
            f"model/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    emit("export.end", files=len(files), bytes=sum(map(len, files.values())), weights_digest=digest)
    return files, digest


def _to_predictions_file(data: LoadedDataset, probabilities: evaluation.Probabilities) -> bytes:
    """Predictions of the whole test split, its labels, and the first images, as one safetensors file."""
    from safetensors.numpy import save

    labels = data.dataset.test_labels
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "probabilities": np.asarray(probabilities, order="C"),
        "labels": np.asarray(labels, order="C"),
        "sample_images": np.asarray(data.dataset.test_images[:SAMPLE_IMAGES], order="C"),
    }
    meta = {"dataset": data.name, "dataset_digest": data.digest, "class_names": data.dataset.class_names}
    return save(arrays, {"predictions": json.dumps(meta, sort_keys=True)})


def _to_metrics_file(scores: evaluation.Scores, *, training: Training, phases: Phases) -> bytes:
    return identity.canonical_json(
        {
            "test": scores.to_json(),
            "history": [asdict(record) for record in training.history],
            "phases_seconds": phases.to_json(),
        }
    )


def _outcome(store: Store, standing: dict[str, Any], *, status: Status) -> Outcome:
    run_id, attempt_id = standing["run"], standing["attempt"]
    status.commit = contract.commit_key(run_id)
    status.accuracy = standing["metrics"]["test_accuracy"]
    model_location = store.location(contract.attempt_prefix(run_id, attempt_id=attempt_id) + "model")
    return Outcome(commit=standing, is_new=attempt_id == status.attempt, model_location=model_location)
