"""The closing summary that a person reads on a terminal."""

from job.config import Config
from job.run import Outcome


def print_summary(outcome: Outcome, *, config: Config, seconds: float) -> None:
    """Score, where the model is, and the command to look at it."""
    metrics, run_id = outcome.commit["metrics"], outcome.commit["run"]
    store = "" if config.store.uri == type(config.store)().uri else f" --store.uri={config.store.uri}"
    if outcome.is_new:
        print(f"\nCommitted run {run_id} after {seconds:.1f} s")
    else:
        print(f"\nRun {run_id} is committed already; nothing was trained. To train again: --run.suffix=again")
    print(
        f"  dataset   {outcome.commit['dataset']['name']}\n"
        f"  test      accuracy {metrics['test_accuracy']:.4f}, loss {metrics['test_loss']:.4f} "
        f"on {metrics['test_examples']} examples\n"
        f"  model     {outcome.model_location}\n"
        f"  look      mnist-job show {run_id}{store}\n"
        f"  verify    mnist-job verify --run {run_id}{store}"
    )
