"""The `run` command: sets up what an attempt is given from outside, and says how it ended."""

import os
import resource
import sys
import threading
from collections.abc import Callable

from job import __version__, contract, logs, streams
from job.assist import assist
from job.attempt import Outcome, Surroundings, after_commit, run
from job.commands.index import rewrite_index
from job.commands.report import report_on
from job.commands.summary import print_summary, print_way_on
from job.config import Config
from job.config_sources import LoadedConfig
from job.contract import Event
from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, GateRefusedError, RetiredError
from job.measures import is_measure
from job.observe import exposition
from job.observe.metrics import Metrics, WarningCounts
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.stored_logs import StoredLog
from job.observe.termination import Status, choose_path
from job.observe.view import View
from job.registry import champion
from job.runs.identity import AttemptIdentity, make_run_id, wanted_replicas
from job.runs.lineage import make_attempt_id
from job.signals import StopSignal
from job.store.open import open_store
from job.texts import one_line, stack_of
from job.training.devices import memory_limit
from job.training.keras_workload import KerasWorkload
from job.training.workers import Workers, workers_from_environment

_TELL_SECONDS = 60.0
"""How long a stalled attempt may take to say so."""


def run_command(loaded: LoadedConfig, *, stop: StopSignal, status: Status) -> int:
    """Make one attempt at a run; returns exit code 0.

    Raises:
        JobError, StopRequested: for `__main__` to report.
    """
    config = loaded.config
    streams.give_up_after(streams.READER_SECONDS)  # training goes on without a line that nobody takes
    log_format = logs.choose_format(config.observe.log_format, stream=sys.stdout)
    pod, phases = contract.pod_from_environment(os.environ), Phases()
    status.path = choose_path(config.observe.termination_log)
    _check_metric(config)
    identity = AttemptIdentity(run=make_run_id(config), attempt=make_attempt_id(pod))
    status.run, status.attempt = identity.run, identity.attempt
    workers = _find_workers(config)
    display = Display(log_format, is_silent=not workers.is_chief)
    stored_log = StoredLog(run=identity.run, attempt=identity.attempt)
    metrics = make_metrics(config, pod, status=status, phases=phases, is_chief=workers.is_chief)
    report: dict[str, bytes] = {}
    gateway = config.observe.pushgateway_url if workers.is_chief else None
    group = push_group(config, pod)

    def push() -> None:
        if gateway:
            exposition.push(gateway, metrics.outcome, group=group)

    def log_end() -> None:
        emit_end(status, display, phases=phases)
        if log_format == "text" and workers.is_chief:
            _say_way_on(config, status)

    def store_log() -> None:
        _store_end(config, stored_log, metrics, status=status, report=report)

    status.on_end = lambda: tell_end(push, log_end, store_log)
    _configure_logs(log_format, identity, workers, display=display, stored_log=stored_log, warnings=metrics.warnings)
    status.write()
    _emit_start(config, pod)
    _serve(config, metrics)
    if gateway:
        exposition.push_start(gateway, metrics.start, group=group)
    surroundings = Surroundings(
        identity=identity,
        pod=pod,
        environ=os.environ,
        workers=workers,
        phases=phases,
        stop=stop,
        view=View(display=display, metrics=metrics, status=status),
        traffic=metrics.traffic,
        stored_log=stored_log,
        on_stall=lambda reason, stacks: _end_stalled(reason, stacks, status=status),
    )
    if not workers.is_chief:
        return _assist(config, surroundings, status=status)
    return _lead(config, surroundings, status=status, log_format=log_format, report=report)


def _say_way_on(config: Config, status: Status) -> None:
    if status.outcome == "interrupted":
        print_way_on(config, status, arguments=sys.argv[1:])


def _store_end(
    config: Config, stored_log: StoredLog, metrics: Metrics, *, status: Status, report: dict[str, bytes]
) -> None:
    """Keep the series, the report and the rest of the log; then make the page of the model again."""
    stored_log.finish({contract.SERIES_FILE: exposition.to_text(metrics.everything), **report})
    if config.observe.report and metrics.is_chief:
        rewrite_index(config, status)
        stored_log.finish({})  # a warning of it


def _serve(config: Config, metrics: Metrics) -> None:
    if config.observe.metrics_port:
        observe = config.observe
        exposition.serve(metrics.running, port=observe.metrics_port, address=observe.metrics_address)


def _lead(
    config: Config,
    surroundings: Surroundings,
    *,
    status: Status,
    log_format: logs.LogFormat,
    report: dict[str, bytes],
) -> int:
    """Make the run's result; returns exit code 0.

    Args:
        report: takes in the page of the run.
    """
    stop = surroundings.stop
    try:
        outcome = run(config, surroundings, KerasWorkload(os.environ))
    except RetiredError as error:  # it was committed: no failure, and the model is not made again under the same id
        stop.ignore()
        return _end_retired(str(error), status=status, log_format=log_format)
    stop.ignore()  # a committed run must not be reported as interrupted
    if config.observe.report and not outcome.is_skipped:
        report |= _make_report(config, outcome)
    return _end_well(
        config,
        outcome,
        status=status,
        log_format=log_format,
        phases=surroundings.phases,
        stored_log=surroundings.stored_log,
    )


def _assist(config: Config, surroundings: Surroundings, *, status: Status) -> int:
    """Take part in the training of a run that worker 0 commits; returns exit code 0."""
    assist(config, surroundings, KerasWorkload(os.environ))
    surroundings.stop.ignore()  # Kubernetes stops the other workers once worker 0 has completed
    status.end(outcome="assisted", code=contract.ExitCode.OK)
    return contract.ExitCode.OK


def _configure_logs(
    log_format: logs.LogFormat,
    identity: AttemptIdentity,
    workers: Workers,
    *,
    display: Display,
    stored_log: StoredLog,
    warnings: WarningCounts,
) -> None:
    logs.configure(
        log_format,
        run=identity.run,
        attempt=identity.attempt,
        worker=workers.index,
        write=display.write,
        also=stored_log if workers.is_chief else None,
        leave_out=_said_elsewhere(log_format),
    )
    logs.tell_too(warnings)


def _said_elsewhere(log_format: logs.LogFormat) -> set[str]:
    """Events whose text a person would read twice: the program prints the same below them, or on stderr of the same terminal."""
    if log_format == "json":
        return set()
    is_one_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    return {"run.retired", *((Event.ERROR, Event.RUN_INTERRUPTED) if is_one_terminal else ())}


def _emit_start(config: Config, pod: contract.Pod) -> None:
    logs.emit(
        Event.RUN_START,
        store=config.store.uri,
        dataset=config.data.name,
        epochs=config.train.epochs,
        version=__version__,
        image=pod.image,
        revision=pod.revision,
        config_digest=sha256_hex(canonical_json(config.model_dump(mode="json"))),
    )


def tell_end(*ways: Callable[[], None]) -> None:
    """Tell the end in every way; one that fails takes no other along."""
    for tell in ways:
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - see above
            reason = f"{type(error).__name__}: {error}"
            logs.warn("end.incomplete", step=tell.__name__, reason=reason, stack=stack_of(error))


def _check_metric(config: Config) -> None:
    """Only a model of the user's own can have metrics that stored predictions do not give.

    Raises:
        ConfigError: no run could be compared by that metric: said before training instead of by the gate after it.
    """
    metric = config.promotion.metric
    if config.model.build is None and not is_measure(metric):
        raise ConfigError(
            f"promotion.metric: must be accuracy, top_K_accuracy, auc or f1_macro without model.build, received {metric!r}; "
            "metrics of your own come with a compiled model"
        )


def _find_workers(config: Config) -> Workers:
    """Raises:
    ConfigError: TF_CONFIG does not fit, each worker would draw a seed of its own, or the batch cannot be shared.
    """
    workers = workers_from_environment(os.environ, count=config.cluster.workers)
    if workers.are_several and config.run.seed == "random" and config.run.id is None:
        raise ConfigError(
            "run.seed: random needs a run.id with several workers, from which all of them take the same seed"
        )
    if workers.are_several and config.train.compile == "xla":
        raise ConfigError(
            "train.compile: xla works with one replica, received cluster.workers above 1; use graph or auto"
        )
    if config.train.global_batch_size % workers.count:  # known before devices are; `devices.check_batch` asks for more
        raise ConfigError(
            f"train.global_batch_size: must be a multiple of cluster.workers ({workers.count}), received "
            f"{config.train.global_batch_size}"
        )
    return workers


def _end_well(
    config: Config, outcome: Outcome, *, status: Status, log_format: str, phases: Phases, stored_log: StoredLog
) -> int:
    """Say how it ended; returns exit code 0.

    Raises:
        GateRefusedError: the run is committed, the gate refused it, and that is to be a failure.
    """
    refusal = outcome.gate.reason if outcome.gate and outcome.gate.verdict == "refused" else ""
    if refusal and config.promotion.refused_is_failure:
        raise GateRefusedError(f"the gate refused run {status.run}, which is committed and whole: {refusal}")
    name = "skipped" if outcome.is_skipped else "committed" if outcome.is_new else "already_committed"
    with after_commit("end.failed"):
        status.end(outcome=name, code=contract.ExitCode.OK, reason=refusal)
    if log_format == "text":
        with after_commit("summary.failed"):
            page = stored_log.location(contract.REPORT_FILE)
            print_summary(outcome, config=config, seconds=status.seconds, phases=phases.to_json(), report=page)
    return contract.ExitCode.OK


def _end_retired(reason: str, *, status: Status, log_format: str) -> int:
    """Say that the run had its result, and that retention removed it; returns exit code 0."""
    logs.warn("run.retired", reason=reason)
    with after_commit("end.failed"):
        status.end(outcome="retired", code=contract.ExitCode.OK, reason=reason)
    if log_format == "text":
        print(f"\nNothing is left to do: {one_line(reason)}")
    return contract.ExitCode.OK


def make_metrics(config: Config, pod: contract.Pod, *, status: Status, phases: Phases, is_chief: bool) -> Metrics:
    """With what the settings tell about the run."""
    metrics = Metrics(status=status, phases=phases, is_chief=is_chief, memory_limit_bytes=memory_limit())
    metrics.describe(
        version=__version__,
        image=pod.image,
        run=status.run,
        dataset=config.data.name,
        precision=config.train.precision,
        replicas=wanted_replicas(config),
        workers=config.cluster.workers,
        origin=pod.origin,
    )
    return metrics


def push_group(config: Config, pod: contract.Pod) -> dict[str, str]:
    """What stays the same from run to run, so that the next run of a schedule replaces what this one pushes.

    A run by hand has another `origin`: it does not stand for the schedule's.
    """
    model = champion.model_name(config, dataset=config.data.name)
    return {"model": model, "namespace": pod.namespace, "origin": pod.origin, "release": pod.release}


def _make_report(config: Config, outcome: Outcome) -> dict[str, bytes]:
    """The page beside the stored log; nothing when it cannot be made."""
    with after_commit("report.failed"):
        store = open_store(config.store, environ=os.environ)
        page = report_on(store, outcome.committed, outcome.gate, settings=config.store)
        return {contract.REPORT_FILE: page}
    return {}


def _end_stalled(reason: str, stacks: str, *, status: Status) -> None:
    """End the process from the watchdog's thread: the main one hangs, and may hold a lock that telling the end needs."""
    code = contract.ExitCode.STALLED

    def tell() -> None:
        logs.error("training.stalled", reason=reason, stacks=stacks.splitlines())
        print(f"mnist-job: error {code.value}: {reason}", file=sys.stderr)
        status.end(outcome="stalled", code=code, reason=reason)

    try:
        telling = threading.Thread(target=tell, daemon=True, name="tell the end")
        telling.start()
        telling.join(_TELL_SECONDS)
    finally:
        os._exit(code)


def emit_end(status: Status, display: Display, *, phases: Phases) -> None:
    """Log how the attempt ended, and what was lost on the way."""
    display.stop()
    if status.failure:
        logs.warn("termination_log.failed", path=str(status.path), reason=status.failure)
    loss = streams.loss_of(sys.stdout)
    if loss:
        logs.warn("output.lost", stream="stdout", reason=loss)  # the stored log has it
    if status.outcome == "interrupted":
        logs.warn(Event.RUN_INTERRUPTED, step=status.step, epoch=status.epoch, reason=status.reason)
    elif status.code:
        stack = {"stack": status.stack} if status.stack else {}
        logs.error(Event.ERROR, code=status.code, reason=status.reason, **stack)
    logs.emit(
        Event.RUN_END,
        outcome=status.outcome,
        code=int(status.code or 0),
        step=status.step,
        accuracy=status.accuracy,
        commit=status.commit,
        seconds=status.seconds,
        phases=phases.to_json(),
        goodput=status.goodput() if status.goodput else None,
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
