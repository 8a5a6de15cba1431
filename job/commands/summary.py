"""The closing summary that a person reads on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from job.attempt import Outcome
from job.config import Config
from job.observe.termination import Status
from job.runs.read import more_metrics
from job.texts import one_line, quoted, say_parts, say_placement, visible


def print_summary(
    outcome: Outcome, *, config: Config, seconds: float, phases: Mapping[str, float], report: str
) -> None:
    """Score, where the model is, where the time went, and the commands to look at it.

    Args:
        phases: seconds of this attempt by phase.
        report: where the page is; empty when there is none.
    """
    run_id, store = outcome.committed.run, store_flags(config)
    if outcome.is_skipped:
        print(
            f"\nNothing has changed: champion {run_id} came from the same inputs, image and code; nothing was trained"
        )
    elif outcome.is_new:
        print(f"\nCommitted run {run_id} after {seconds:.1f} s")
    else:
        other = "another --run.id" if config.run.id else "--run.suffix=again"
        is_late = "train" in phases
        done = "was committed by another attempt meanwhile" if is_late else "is committed already; nothing was trained"
        print(f"\nRun {run_id} {done}. To train again: {other}")
    lines = [("dataset", outcome.committed.dataset.name), *say_scores(outcome.committed.record)]
    lines += [*_trained_lines(outcome), ("gate", _gate_line(outcome)), ("time", say_parts(phases))]
    lines += [("model", outcome.model_location), *([("report", report)] if report else [])]
    lines += [("look", f"mnist-job show {quoted(run_id)}{store}")]
    lines += [("verify", f"mnist-job verify --run {quoted(run_id)}{store}")]
    for name, text in lines:
        print(f"  {name:<9} {visible(text)}")


def print_way_on(config: Config, status: Status, *, arguments: Sequence[str]) -> None:
    """The command that goes on with a run that was stopped, for the shell that it was stopped in.

    Args:
        arguments: those that this process was started with.
    """
    is_new_each_time = config.run.id is None and config.run.seed == "random"
    more = [f"--run.id={status.run}"] if is_new_each_time else []
    where = f"at step {status.step}, which is saved" if status.step else "before its first step"
    print(f"\nStopped {where}. To go on:\n  mnist-job {' '.join(quoted(word) for word in (*arguments, *more))}")


def say_scores(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines about what the COMMIT says of the test split, and of the validation split where there was one."""
    metrics = record["metrics"]
    more = [f"{name} {value:.4f}" for name, value in more_metrics(metrics).items()]
    lines = [("test", _test_line(metrics)), *([("", ", ".join(more))] if more else [])]
    if metrics.get("val_loss") is None:
        return lines
    validation = (
        f"accuracy {metrics['val_accuracy']:.4f}, loss {metrics['val_loss']:.4f} on {metrics['val_examples']} examples"
    )
    return [*lines, ("validation", validation), ("weights", say_weights(record))]


def _test_line(metrics: Mapping[str, Any]) -> str:
    """Records of other versions may hold the accuracy alone."""
    loss, num_examples = metrics.get("test_loss"), metrics.get("test_examples")
    said = f"accuracy {metrics['test_accuracy']:.4f}" + ("" if loss is None else f", loss {loss:.4f}")
    return said if num_examples is None else f"{said} on {num_examples} examples"


def say_weights(record: Mapping[str, Any]) -> str:
    """Such as `of epoch 4 of 9, the best; stopped early (train.epochs 20)`, from the COMMIT of a run with a validation split."""
    train, best, stopped = record["config"]["train"], record["best_epoch"], record["stopped_epoch"]
    last = stopped or train["epochs"]
    kept = best if best and train["keep"] == "best" else last
    is_best = ", the best" if kept == best else f"; the best was epoch {best}"
    return f"of epoch {kept} of {last}{is_best}" + (
        f"; stopped early (train.epochs {train['epochs']})" if stopped else ""
    )


def _trained_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """Where the replicas were, when there was more than one."""
    lineage = outcome.committed.record.get("lineage", {})
    num_replicas = len(lineage.get("devices", []))
    if num_replicas < 2:
        return []
    return [("trained", say_placement(num_workers=lineage.get("workers", 1), num_replicas=num_replicas))]


def _gate_line(outcome: Outcome) -> str:
    gate = outcome.gate
    if gate is None:
        return "is the champion" if outcome.is_skipped else "not asked (promotion.enabled is false)"
    verdict = f"promoted to version {gate.version} of {gate.model}" if gate.version else "not promoted"
    return one_line(f"{verdict}: {gate.reason}")


def store_flags(config: Config) -> str:
    """What a command needs to reach the same store, with a blank before each flag."""
    changed = config.store.model_dump(mode="json", exclude_defaults=True)
    values = {name: value for name, value in changed.items() if not name.endswith("_seconds")}
    return "".join(f" {quoted(f'--store.{name}={value}')}" for name, value in values.items())
