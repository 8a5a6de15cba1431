"""What the job trains: data, devices, the Keras model, its evaluation and its export. Imports TensorFlow late."""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from job import plugins
from job.config import SOURCES, Config
from job.contract import Event
from job.datasets.dataset import Dataset, Images, Labels, evaluation_digest_of
from job.datasets.load import LoadedDataset, check_source
from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, IntegrityError
from job.logs import emit
from job.observe.phases import WAIT_FOR_WORKERS, Phases
from job.runs import identity
from job.runs.lineage import Device
from job.runs.read import MODEL_FOLDER, PREDICTIONS_FILE, DatasetIdentity, unpack_model
from job.training import devices, evaluation, export, foreign, own_model, own_recipe, pipeline
from job.training.chatter import import_tensorflow
from job.training.examples import load_examples
from job.training.export import SAMPLE_IMAGES
from job.training.graphs import check_graphs
from job.training.loop import Measure, Split, Training
from job.training.model import build_model, model_input_shape
from job.training.recipe import Recipe, check_gate_metric, check_settings, make_measure, make_recipe
from job.training.steps import StepRunner
from job.training.trial import try_step
from job.training.workers import (
    Exchange,
    StrategyExchange,
    Workers,
    exchange_with_nobody,
    peer_errors,
    wait_for_workers,
)
from job.training.workload import Prepared, Results


class KerasWorkload:
    """A Keras model under a tf.distribute strategy; a `workload.Workload`."""

    _config: Config
    _strategy: Any
    _workers: Workers
    _phases: Phases
    _exchange: Exchange
    _data: LoadedDataset
    _seed: int
    _compile_with: str
    _described: Mapping[str, Any]
    """What the model in `_plain` is, as the run records it."""
    _plain: Any
    """The model outside the strategy's scope: for what is checked before training, and for the export."""
    _model: Any
    _measure: Measure

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """`environ` gets what TensorFlow has to find there before it starts."""
        self._environ = environ

    def prepare(
        self,
        config: Config,
        *,
        run_id: str,
        phases: Phases,
        workers: Workers,
        look: Callable[[], None],
        recorded_compile: str | None = None,
    ) -> Prepared:
        """Bring workers, devices and data, and check that batch, replicas and examples fit.

        Raises:
            JobError: data or devices are absent, corrupt, or do not fit the settings; a worker did not come.
        """
        self._config, self._workers, self._phases = config, workers, phases
        if not workers.are_several:
            self._environ.pop("TF_CONFIG", None)  # MirroredStrategy would read it
        # Devices before data: tensorflow-datasets and own sources may start TensorFlow, which then keeps its threads.
        with phases("start_up"):
            if config.model.build:
                plugins.check_exists(config.model.build, field="model.build")
            check_source(config.data)
            export.check_temporary_folder()
            devices.prepare_process(self._environ)
            self._strategy = self._meet(phases, look=look)
        with phases("data"):
            self._data = load_examples(config, environ=self._environ)
        self._check_fit()
        self._seed = identity.resolve_seed(config, run_id=run_id)
        with phases("build"):
            self._plain, self._described = self._build_plain()
            weight_bytes = _bytes_of(self._plain)
            export.check_temporary_folder(num_bytes=weight_bytes)
        device = self._choose_device(recorded_compile)
        self._compile_with = device.compile_with
        self._exchange = self._make_exchange(phases)
        return Prepared(
            inputs=identity.result_inputs(
                config,
                seed=self._seed,
                compile_with=device.compile_with,
                num_replicas=len(device.names),
                dataset_digest=self._data.digest,
                code={**self._described, **self._describe_classes()},
            ),
            dataset=DatasetIdentity(
                name=self._data.name,
                digest=self._data.digest,
                evaluation_digest=evaluation_digest_of(self._data.dataset),
            ),
            device=device,
            exchange=self._exchange,
            weight_bytes=weight_bytes,
            num_test_examples=len(self._data.dataset.test_labels),
        )

    def _choose_device(self, recorded_compile: str | None) -> Device:
        """What computes the steps, and how they are compiled."""
        config, threads = self._config, devices.threads(self._config.cluster)
        names = devices.name_devices(tuple(self._strategy.extended.worker_devices), num_workers=config.cluster.workers)
        compile_with = devices.resolve_compile(
            config.train,
            model=self._plain,
            is_own=config.model.build is not None,
            device_names=names,
            intra_op_threads=threads["intra_op"],
            recorded=recorded_compile,
        )
        return Device(names=names, threads=threads, compile_with=compile_with, num_workers=config.cluster.workers)

    def _check_fit(self) -> None:
        """Refuse settings that do not fit data and replicas."""
        train, dataset = self._config.train, self._data.dataset
        num_examples, num_replicas = len(dataset.train_labels), self._strategy.num_replicas_in_sync
        devices.check_batch(train.global_batch_size, num_replicas=num_replicas, num_examples=num_examples)
        check_settings(train, num_examples=num_examples, num_classes=len(dataset.class_names))

    def _meet(self, phases: Phases, *, look: Callable[[], None]) -> Any:
        """The strategy, once all workers are there."""
        config = self._config.cluster
        import_tensorflow()  # takes seconds: before the others hear that this worker is ready
        if self._workers.are_several:
            with phases(WAIT_FOR_WORKERS):
                wait_for_workers(self._workers, timeout_seconds=config.start_timeout_seconds, look=look)
        return devices.make_strategy(config, self._workers)

    def _make_exchange(self, phases: Phases) -> Exchange:
        if not self._workers.are_several:
            return exchange_with_nobody
        seconds = self._config.cluster.start_timeout_seconds
        return StrategyExchange(self._strategy, self._workers, timeout_seconds=seconds, phases=phases)

    def _build_plain(self) -> tuple[Any, dict[str, Any]]:
        """A model that is not trained: what it is, and that it works, is known before anything is written."""
        model, config = self._build_model(), self._config
        num_classes = len(self._data.dataset.class_names)
        if config.model.build is not None:
            own_recipe.check_recipe(model, config.train, name=config.model.build, num_classes=num_classes)
        if config.promotion.enabled:
            check_gate_metric(config.promotion.metric, model, num_classes=num_classes)
        if config.model.build is None:
            return model, {}
        described = own_model.describe(model, config.model)
        probabilities = own_model.try_once(
            model,
            config.model,
            examples=self._few_examples(),
            num_classes=num_classes,
            precision=config.train.precision,
        )
        for labels in self._scored_labels():
            own_recipe.try_metrics(model, probabilities, labels, name=config.model.build, num_classes=num_classes)
        self._try_step()
        if self._workers.is_chief:
            self._try_export(model, name=config.model.build)
        return model, described

    def _scored_labels(self) -> Iterator[Labels]:
        """Those of all classes, and those that metrics will be computed with: a class may be absent there."""
        dataset = self._data.dataset
        yield np.arange(2 * len(dataset.class_names)) % len(dataset.class_names)
        yield dataset.test_labels
        if dataset.validation_labels is not None:
            yield dataset.validation_labels

    def _try_export(self, model: Any, *, name: str) -> None:
        """Export what is not trained: that this cannot be done would otherwise be found after the training."""
        images = self._data.dataset.test_images[:SAMPLE_IMAGES]
        predict = evaluation.Predictor(
            model,
            input_shape=self._input_shape,
            batch_examples=self._batch_examples(),
            is_filled_up=False,
            on_batch=self._phases.beat,
        )
        with export.temporary_folder("export") as folder:
            with plugins.user_code(name, field="model.build", doing="its model cannot be exported"):
                self._save(model, folder)
            try:
                check_graphs(folder)
            except IntegrityError as error:
                raise ConfigError(
                    f"model.build: {name}: {error}: the gate of the next run would not; leave it out of what the model does "
                    "outside training (docs/own-model.md, What a model may do)"
                ) from error
            with plugins.user_code(name, field="model.build", doing="its model cannot be exported"):
                received = export.predict_with_export(folder, images)
            try:
                export.check_predictions(received, predict(images))
            except IntegrityError as error:
                raise ConfigError(
                    f"model.build: {name}: its exported model does not predict what the model does: {error}; what it says of an "
                    "image must not depend on the other images of the batch, nor on random numbers"
                ) from error

    def _try_step(self) -> None:
        """Trace a step as one replica makes it, with a model of its own: an optimizer leaves its marks."""
        config, num_classes = self._config, len(self._data.dataset.class_names)
        assert config.model.build is not None  # the reference model has no faults to find

        def make() -> tuple[Any, Recipe]:
            model = self._build_model()
            return model, self._make_recipe(model, num_replicas=1)

        try_step(
            make,
            name=config.model.build,
            input_shape=self._input_shape,
            num_classes=num_classes,
            batch_size=config.train.global_batch_size // self._strategy.num_replicas_in_sync,
        )

    def _describe_classes(self) -> dict[str, str]:
        """Names of an own source's classes: the digest of its data knows their numbers only."""
        if self._config.data.source in SOURCES:
            return {}
        return {"class_names": sha256_hex(canonical_json(self._data.dataset.class_names))}

    def _few_examples(self) -> Any:
        """Some training examples as the model gets them: float32 [n, *input_shape]."""
        images = self._data.dataset.train_images[:SAMPLE_IMAGES]
        return evaluation.preprocess(images, input_shape=self._input_shape).numpy()

    def build(self) -> Training:
        """Model, optimizer and data in the strategy's scope, ready to run from any step.

        Raises:
            PeerLostError: another worker is gone: the chief sends the initial values to all.
        """
        with peer_errors(self._workers):
            return self._build()

    def _build(self) -> Training:
        config, dataset = self._config, self._data.dataset
        with self._strategy.scope():
            self._model = self._build_model()
        if config.model.build:
            own_model.check_same(self._model, self._described, config.model)
        self._measure = make_measure(config.train, self._plain, num_classes=len(dataset.class_names))
        steps_per_epoch = self._steps_per_epoch
        with self._strategy.scope():
            recipe = self._make_recipe(self._model, num_replicas=self._strategy.num_replicas_in_sync)
        runner = StepRunner(
            self._strategy,
            model=self._model,
            recipe=recipe,
            compile_with=self._compile_with,
            make_chunks=self._chunks_maker(steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            workers=self._workers,
        )
        predictor = evaluation.Predictor(
            self._model,
            input_shape=self._input_shape,
            batch_examples=self._batch_examples(),
            is_filled_up=config.model.build is None,
            on_batch=self._phases.beat,
        )
        training = Training(
            runner,
            settings=config.train,
            num_examples=len(dataset.train_labels),
            test=Split(predict=lambda: predictor(dataset.test_images), labels=dataset.test_labels),
            validation=_validation_split(dataset, predictor),
            measure=self._measure,
            learning_rate=recipe.learning_rate,
            exchange=self._exchange,
        )
        self._emit_train_start(training)
        return training

    @property
    def _input_shape(self) -> tuple[int, ...]:
        """What one example looks like to the model."""
        return model_input_shape(self._config.model, image_shape=self._data.dataset.image_shape)

    def _chunks_maker(self, steps_per_epoch: int) -> Callable[[int], Any]:
        """The chunks of this worker from a step on, as `StepRunner` takes them."""
        train, dataset = self._config.train, self._data.dataset
        is_fast = self._config.model.build is None or devices.is_dense(self._plain)
        steps_per_chunk = pipeline.choose_steps_per_chunk(
            steps_per_epoch,
            num_pixels=math.prod(dataset.image_shape),
            global_batch_size=train.global_batch_size,
            most_steps=pipeline.MAX_STEPS_PER_CHUNK if is_fast else pipeline.MAX_SLOW_STEPS_PER_CHUNK,
        )

        def make_chunks(start_step: int) -> Any:
            return pipeline.make_chunks(
                images=dataset.train_images,
                labels=dataset.train_labels,
                num_classes=len(dataset.class_names),
                image_shape=self._input_shape,
                global_batch_size=train.global_batch_size,
                steps_per_chunk=steps_per_chunk,
                seed=self._seed,
                start_step=start_step,
                stop_step=steps_per_epoch * train.epochs,
                worker=self._workers.index,
                num_workers=self._workers.count,
            )

        return make_chunks

    @property
    def _steps_per_epoch(self) -> int:
        return pipeline.steps_per_epoch(
            len(self._data.dataset.train_labels), global_batch_size=self._config.train.global_batch_size
        )

    def _make_recipe(self, model: Any, *, num_replicas: int) -> Recipe:
        dataset = self._data.dataset
        return make_recipe(
            self._config.train,
            model,
            name=self._config.model.build or "",
            train_labels=dataset.train_labels,
            num_classes=len(dataset.class_names),
            steps_per_epoch=self._steps_per_epoch,
            num_replicas=num_replicas,
        )

    def finish(self, training: Training, *, phases: Phases) -> Results:
        """Score the test split, and write the SavedModel that predicts what was scored."""
        dataset = self._data.dataset
        with phases("evaluate"):
            training.load_result()
            probabilities = training.predict()
            scores = evaluation.score(
                probabilities,
                dataset.test_labels,
                class_names=dataset.class_names,
                metrics=self._measure(probabilities, dataset.test_labels),
            )
            more: dict[str, Any] = {"metrics": scores.metrics} if scores.metrics else {}
            emit(
                Event.EVALUATE_END,
                test_loss=scores.loss,
                test_accuracy=scores.accuracy,
                **more,
                examples=scores.num_examples,
            )
        with phases("export"):
            files, weights_digest = self._export(probabilities)
            files[PREDICTIONS_FILE] = export.to_predictions_file(self._data, probabilities, wrong=scores.wrong)
        return Results(files=files, weights_digest=weights_digest, scores=scores)

    def predict_with(self, files: Mapping[str, bytes], *, weights_digest: str) -> evaluation.Probabilities:
        """Classify this run's test images with another run's SavedModel, which must have the weights of its COMMIT."""
        with export.temporary_folder("champion") as folder:
            unpack_model(files, folder)
            answer = foreign.classify(
                folder,
                self._data.dataset.test_images,
                whose="the champion",
                num_classes=len(self._data.dataset.class_names),
                threads=devices.threads(self._config.cluster),
                batch_examples=self._batch_examples(),
            )
        if answer.weights_digest != weights_digest:
            raise IntegrityError("the model of the champion has other weights than its COMMIT says")
        return answer.probabilities

    def _batch_examples(self) -> int:
        """Images that are evaluated at a time. The recorded losses of the reference model have the bits of the largest batch."""
        if self._config.model.build is None:
            return evaluation.MAX_BATCH_EXAMPLES
        batch_size_per_replica = self._config.train.global_batch_size // self._strategy.num_replicas_in_sync
        return evaluation.choose_batch_examples(batch_size_per_replica=batch_size_per_replica)

    def _build_model(self) -> Any:
        return build_model(
            self._config.model,
            image_shape=self._data.dataset.image_shape,
            num_classes=len(self._data.dataset.class_names),
            seed=self._seed,
            precision=self._config.train.precision,
        )

    def _emit_train_start(self, training: Training) -> None:
        train, num_replicas = self._config.train, self._strategy.num_replicas_in_sync
        is_own = "recipe" in self._described
        emit(
            Event.MODEL_BUILT,
            parameters=self._model.count_params(),
            precision=train.precision,
            optimizer=self._described["recipe"]["optimizer"]["class_name"] if is_own else train.optimizer,
        )
        emit(
            Event.TRAIN_START,
            workers=self._workers.count,
            replicas=num_replicas,
            global_batch_size=train.global_batch_size,
            batch_size_per_replica=train.global_batch_size // num_replicas,
            steps_per_epoch=training.steps_per_epoch,
            epochs=train.epochs,
            compile=self._compile_with,
            seed=self._seed,
        )

    def _export(self, probabilities: evaluation.Probabilities) -> tuple[dict[str, bytes], str]:
        """Write the SavedModel, check that it predicts what was evaluated, and return its files and weights digest."""
        dataset = self._data.dataset
        plain = self._plain  # a mirrored model would be saved with its replicas
        plain.set_weights(self._model.get_weights())
        with export.temporary_folder("export") as folder:
            self._save(plain, folder)
            received = export.predict_with_export(folder, dataset.test_images[:SAMPLE_IMAGES])
            export.check_predictions(received, probabilities[:SAMPLE_IMAGES])
            digest = export.weights_digest(plain.get_weights())
            files = {
                f"{MODEL_FOLDER}{path.relative_to(folder).as_posix()}": path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        emit(Event.EXPORT_END, files=len(files), bytes=sum(map(len, files.values())), weights_digest=digest)
        return files, digest

    def _save(self, model: Any, folder: Path) -> None:
        dataset = self._data.dataset
        export.save_model(
            model,
            folder,
            image_shape=dataset.image_shape,
            image_dtype=dataset.image_dtype,
            input_shape=self._input_shape,
        )


def _bytes_of(model: Any) -> int:
    """Of its weights, as an export holds them."""
    return sum(variable.value.dtype.size * math.prod(variable.shape) for variable in model.weights)


def _validation_split(dataset: Dataset, predict: Callable[[Images], evaluation.Probabilities]) -> Split | None:
    images, labels = dataset.validation_images, dataset.validation_labels
    if images is None or labels is None:
        return None
    return Split(predict=lambda: predict(images), labels=labels)
