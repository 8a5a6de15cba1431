"""The command verify: proof that a committed run is whole, by hashes, weights, and predictions of the loaded SavedModel."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from job import contract, measures
from job.commands.champion import describe_move
from job.commands.cli import CommandLine
from job.commands.lookup import checked_model, configured_store, find_committed, wait_for
from job.config import ClusterSection
from job.config_sources import LoadedConfig
from job.errors import IntegrityError
from job.registry import champion, serving
from job.registry.champion import Move
from job.runs.read import (
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    CommittedRun,
    Predictions,
    more_metrics,
    parse_predictions,
    predictions_file,
    read_files,
    unpack_model,
)
from job.store.store import Store
from job.texts import visible
from job.training import devices, evaluation, export, foreign

_ACCURACY_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was checked."""

    num_files: int
    num_bytes: int
    num_predicted: int
    largest_difference: float


def verify(line: CommandLine, loaded: LoadedConfig) -> int:
    """Verify a run, or the champion of a model with its serving layout.

    Raises:
        IntegrityError: something is not what was committed.
        NotFoundError: there is no such result.
    """
    store, options = configured_store(loaded), line.options
    newest = None
    if options.champion:
        checked_model(options.champion)
        newest = wait_for(lambda: champion.read_newest(store, options.champion), seconds=options.wait)
        if newest is None:
            raise champion.no_champion(store, options.champion)
        committed = _commit_of_champion(store, newest)
    else:
        committed = find_committed(store, options.run, wait_seconds=options.wait)
    report = verify_run(store, committed, cluster=loaded.config.cluster)
    print(
        f"verified: run {committed.run}, attempt {visible(committed.attempt)}\n"
        f"  {report.num_files} files, {report.num_bytes} bytes: sizes and SHA-256 as committed\n"
        f"  weights digest {committed.weights_digest}: recomputed from the SavedModel, equal\n"
        f"  SavedModel loaded; {report.num_predicted} images classified as recorded (largest difference "
        f"{report.largest_difference:.1e})\n"
        f"  test accuracy {committed.test_accuracy:.4f}: recomputed from the stored predictions, equal"
    )
    if newest:
        num_files = serving.check_layout(store, newest)
        print(f"  champion of {newest.model}: {describe_move(newest)}\n  serving layout: {num_files} files, equal")
    return contract.ExitCode.OK


def _commit_of_champion(store: Store, newest: Move) -> CommittedRun:
    committed = champion.commit_of(store, newest)
    if committed.weights_digest != newest.to.weights_digest:
        raise IntegrityError(
            f"version {newest.version} of {newest.model} names other weights than the COMMIT of its run"
        )
    return committed


def verify_run(store: Store, committed: CommittedRun, *, cluster: ClusterSection) -> Report:
    """Follow a COMMIT to its objects and check that they are the model that was evaluated.

    Args:
        cluster: the threads to classify with.

    Raises:
        IntegrityError: an object is missing or altered, or the model predicts something else.
    """
    predictions_file(committed)  # refused before anything is read
    files = read_files(store, committed)
    recorded = parse_predictions(files[PREDICTIONS_FILE])
    _check_scores(committed, recorded)
    model = {name.removeprefix(MODEL_FOLDER): data for name, data in files.items() if name.startswith(MODEL_FOLDER)}
    images = recorded.sample_images
    with tempfile.TemporaryDirectory(prefix="mnist-verify-") as temporary:
        folder = Path(temporary)
        unpack_model(model, folder)
        answer = foreign.classify(
            folder,
            images,
            whose=f"run {committed.run}",
            num_classes=recorded.probabilities.shape[1],
            threads=devices.threads(cluster),
        )
    if answer.weights_digest != committed.weights_digest:
        raise IntegrityError(f"run {committed.run}: the SavedModel's weights are not the committed ones")
    received = answer.probabilities
    export.check_predictions(received, recorded.probabilities[: len(images)])
    return Report(
        num_files=len(files),
        num_bytes=sum(map(len, files.values())),
        num_predicted=len(images),
        largest_difference=float(np.abs(received - recorded.probabilities[: len(images)]).max()),
    )


def _check_scores(committed: CommittedRun, recorded: Predictions) -> None:
    _, accuracy = evaluation.loss_and_accuracy(recorded.probabilities, recorded.labels)
    if abs(accuracy - committed.test_accuracy) > _ACCURACY_TOLERANCE:
        raise IntegrityError(
            f"run {committed.run}: the stored predictions give accuracy {accuracy}, the COMMIT says "
            f"{committed.test_accuracy}"
        )
    wanted = committed.record.get("config", {}).get("train", {}).get("metrics", [])
    for name, value in more_metrics(committed.record["metrics"]).items():
        found = measures.measure(name, recorded.probabilities, recorded.labels) if name in wanted else value
        if abs(found - value) > _ACCURACY_TOLERANCE:  # those of a compiled model need its code
            raise IntegrityError(
                f"run {committed.run}: the stored predictions give {name} {found}, the COMMIT says {value}"
            )
