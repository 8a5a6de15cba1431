"""The closing summary that a person reads on a terminal."""

from collections.abc import Mapping
from typing import Any

from job.attempt import Outcome
from job.config import Config
from job.runs.read import more_metrics
from job.texts import one_line, quoted, say_placement


def print_summary(outcome: Outcome, *, config: Config, seconds: float) -> None:
    """Score, where the model is, and the command to look at it."""
    metrics, run_id = outcome.committed.record["metrics"], outcome.committed.run
    store = "".join(f" {quoted(f'--store.{name}={value}')}" for name, value in _store_settings(config).items())
    if outcome.is_skipped:
        print(
            f"\nNothing has changed: champion {run_id} came from the same inputs, image and code; nothing was trained"
        )
    elif outcome.is_new:
        print(f"\nCommitted run {run_id} after {seconds:.1f} s")
    else:
        other = "another --run.id" if config.run.id else "--run.suffix=again"
        print(f"\nRun {run_id} is committed already; nothing was trained. To train again: {other}")
    print(
        f"  dataset   {one_line(outcome.committed.dataset.name)}\n"
        f"  test      {_test_line(metrics)}\n"
        f"{_metrics_line(metrics)}"
        f"{_validation_lines(outcome)}"
        f"{_trained_line(outcome)}"
        f"  gate      {_gate_line(outcome)}\n"
        f"  model     {outcome.model_location}\n"
        f"  look      mnist-job show {quoted(run_id)}{store}\n"
        f"  verify    mnist-job verify --run {quoted(run_id)}{store}"
    )


def _test_line(metrics: Mapping[str, Any]) -> str:
    """Records of other versions may hold the accuracy alone."""
    loss, num_examples = metrics.get("test_loss"), metrics.get("test_examples")
    said = f"accuracy {metrics['test_accuracy']:.4f}" + ("" if loss is None else f", loss {loss:.4f}")
    return said if num_examples is None else f"{said} on {num_examples} examples"


def _metrics_line(metrics: Mapping[str, Any]) -> str:
    more = [f"{name} {value:.4f}" for name, value in more_metrics(metrics).items()]
    return f"            {', '.join(more)}\n" if more else ""


def _validation_lines(outcome: Outcome) -> str:
    """What the validation split says and has decided, when there was one."""
    metrics = outcome.committed.record["metrics"]
    if metrics.get("val_loss") is None:
        return ""
    return (
        f"  validation accuracy {metrics['val_accuracy']:.4f}, loss {metrics['val_loss']:.4f} "
        f"on {metrics['val_examples']} examples\n"
        f"  weights   {say_weights(outcome.committed.record)}\n"
    )


def say_weights(record: Mapping[str, Any]) -> str:
    """Such as `of epoch 4 of 9, the best; stopped early (train.epochs 20)`, from the COMMIT of a run with a validation split."""
    train, best, stopped = record["config"]["train"], record["best_epoch"], record["stopped_epoch"]
    last = stopped or train["epochs"]
    kept = best if best and train["keep"] == "best" else last
    is_best = ", the best" if kept == best else f"; the best was epoch {best}"
    return f"of epoch {kept} of {last}{is_best}" + (
        f"; stopped early (train.epochs {train['epochs']})" if stopped else ""
    )


def _trained_line(outcome: Outcome) -> str:
    """Where the replicas were, when there was more than one."""
    lineage = outcome.committed.record.get("lineage", {})
    num_replicas = len(lineage.get("devices", []))
    if num_replicas < 2:
        return ""
    return f"  trained   {say_placement(num_workers=lineage.get('workers', 1), num_replicas=num_replicas)}\n"


def _gate_line(outcome: Outcome) -> str:
    gate = outcome.gate
    if gate is None:
        return "is the champion" if outcome.is_skipped else "not asked (promotion.enabled is false)"
    verdict = f"promoted to version {gate.version} of {gate.model}" if gate.version else "not promoted"
    return one_line(f"{verdict}: {gate.reason}")


def _store_settings(config: Config) -> dict[str, object]:
    """What a command needs to reach the same store."""
    changed = config.store.model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in changed.items() if not name.endswith("_seconds")}
