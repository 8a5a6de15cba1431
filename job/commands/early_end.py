"""How an attempt says its end that came no further than its settings: what `run_command` sets up was not there yet.

Who waits for the run looks at the Pushgateway, the log and the store, whatever was wrong with its settings.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

from job import contract, logs, streams
from job.commands.cli import split_settings
from job.commands.run import emit_end, make_metrics, push_group, tell_end
from job.config_sources import Salvaged, salvage
from job.errors import ConfigError
from job.observe import exposition
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.stored_logs import StoredLog
from job.observe.termination import Status, config_files
from job.runs.lineage import make_attempt_id
from job.store.open import open_store
from job.training.workers import workers_from_environment


def tell_early_end(arguments: Sequence[str], status: Status) -> None:
    """Say it as an event, and where the settings that are right name them, on the Pushgateway and in the stored log.

    Args:
        arguments: of `mnist-job`, as given.
    """
    found = salvage(split_settings(arguments)[0], config_files=config_files(arguments))
    config, pod, phases = found.config, contract.pod_from_environment(os.environ), Phases()
    status.run = status.run or config.run.id or ""
    with contextlib.suppress(ConfigError):
        status.attempt = status.attempt or make_attempt_id(pod)
    status.write()
    worker = _worker(found)
    metrics = make_metrics(config, pod, status=status, phases=phases, is_chief=not worker)
    stored_log = StoredLog(run=status.run, attempt=status.attempt)

    def push() -> None:
        if config.observe.pushgateway_url and not worker:
            group = push_group(config, pod) | ({} if _knows_model(found) else {"model": ""})
            exposition.push(config.observe.pushgateway_url, metrics.outcome, group=group)

    def log_end() -> None:
        emit_end(status, Display("json", is_silent=True), phases=phases)

    def store_log() -> None:
        if status.run and status.attempt and not worker and _knows_store(found):
            stored_log.attach(open_store(config.store, environ=os.environ))
            stored_log.finish({contract.SERIES_FILE: exposition.to_text(metrics.everything)})

    streams.give_up_after(streams.READER_SECONDS)
    log_format = logs.choose_format(config.observe.log_format, stream=sys.stdout)
    # A terminal has the line on stderr, and needs no second one.
    write = logs.write_line if log_format == "json" else lambda line: None
    logs.configure(
        log_format,
        run=status.run,
        attempt=status.attempt,
        worker=worker,
        write=write,
        also=None if worker else stored_log,
    )
    logs.tell_too(metrics.warnings)
    tell_end(push, log_end, store_log)


def _worker(found: Salvaged) -> int:
    """Which of several workers this is; 0 where even that is wrong, so that somebody speaks."""
    with contextlib.suppress(ConfigError):
        return workers_from_environment(os.environ, count=found.config.cluster.workers).index
    return 0


def _knows_model(found: Salvaged) -> bool:
    """Whether the model is the one that was meant: it has the name of the dataset, unless it is given one."""
    return found.is_whole("promotion") and ("promotion.model_name" in found.given or found.is_whole("data"))


def _knows_store(found: Salvaged) -> bool:
    """Whether a store is named, and nothing about it is wrong: no folder is made for a slip of the keyboard."""
    return "store.uri" in found.given and found.is_whole("store")
