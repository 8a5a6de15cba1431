"""What a worker that is not the chief does in an attempt: the same steps as the chief, and nothing is written.

It reads two things from the store: whether the run is committed, and the checkpoint that the chief goes on from.
"""

from job import clock, contract
from job.attempt import Surroundings, show_prepared, train
from job.config import Config
from job.errors import ConfigError
from job.runs import checkpoint as checkpoints
from job.runs import read
from job.runs.goodput import Ledger
from job.runs.lineage import bits_depend_on, describe_attempt
from job.store.open import open_store
from job.training import agreement
from job.training.workers import NothingToTrainError
from job.training.workload import Workload


def assist(config: Config, surroundings: Surroundings, workload: Workload) -> None:
    """Take part in the run until the chief has committed it, or nothing is left to train.

    Raises:
        JobError: its class gives the exit code.
        StopRequested: SIGTERM, SIGINT or SIGHUP, of this worker or of another.
    """
    phases, run_id = surroundings.phases, surroundings.identity.run
    with phases("store"):
        store = open_store(config.store, environ=surroundings.environ, traffic=surroundings.traffic)
        store.list_objects(contract.run_prefix(run_id))  # a missing bucket or a wrong key is known at once

    def look() -> None:
        if read.is_over(store, run_id):
            raise NothingToTrainError

    try:
        look()
        prepared = workload.prepare(config, run_id=run_id, phases=phases, workers=surroundings.workers, look=look)
    except NothingToTrainError:
        return
    show_prepared(prepared, surroundings)
    lineage = describe_attempt(
        surroundings.pod, surroundings.identity, device=prepared.device, environ=surroundings.environ, config=config
    )
    said = agreement.tell_inputs(prepared.exchange, config=config, inputs=prepared.inputs, lineage=lineage)
    chief = said[0]
    if chief["is_over"]:
        return
    attempt_key = contract.attempt_prefix(run_id, attempt_id=chief["attempt"]) + read.ATTEMPT_FILE
    if read.get_record(store, attempt_key) is None:
        raise ConfigError(
            f"store {store.uri} of this worker is not that of worker 0, which has written {attempt_key}; give all the same"
        )
    agreement.are_bits_alike(said)
    with phases("restore"):
        key, digest = chief["checkpoint"], chief["result_digest"]
        max_bytes = checkpoints.max_bytes(weight_bytes=prepared.weight_bytes)
        checkpoint = checkpoints.load(store, key, result_digest=digest, max_bytes=max_bytes) if key else None
    with phases("build"):
        training = workload.build()
    ledger = Ledger(
        phases=phases,
        attempt=surroundings.identity.attempt,
        num_attempts=1,
        computed_on=bits_depend_on(lineage),
        first_started_seconds=clock.now(),
    )
    train(config, training, checkpoint, None, surroundings=surroundings, ledger=ledger, result_digest=digest)
    agreement.compare_weights(prepared.exchange, training)
    prepared.exchange(is_over=True, has_limit=False)  # comes back when the chief has committed
