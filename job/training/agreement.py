"""What the workers of a run must agree on, before step 1 and before the commit."""

from collections.abc import Mapping
from typing import Any

from job.config import Config
from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, TrainingError
from job.logs import warn
from job.runs.identity import differences, digest_of_inputs
from job.runs.lineage import Lineage, bits_depend_on
from job.training.loop import Training
from job.training.workers import Exchange, exchange_with_nobody

_MAX_INPUTS_BYTES, _MAX_NAME = 2048, 500
_EQUAL = {"run": "run.id", "image": "image", "version": "image", "peer_timeout": "cluster.peer_timeout_seconds"}
"""What must be equal beside the inputs -> what to give alike."""


def tell_inputs(
    exchange: Exchange, *, config: Config, inputs: Mapping[str, Any], lineage: Lineage, **more: Any
) -> list[dict[str, Any]]:
    """Tell the others what this worker would train and on what; returns what all said.

    Args:
        more: what the chief says beside it, such as the checkpoint to go on from.

    Raises:
        ConfigError: a worker would train something else than the chief, or with another image.
        PeerLostError: a worker is gone.
    """
    is_short = len(canonical_json(inputs)) <= _MAX_INPUTS_BYTES
    said = exchange(
        digest=digest_of_inputs(inputs),
        inputs=inputs if is_short else {},
        run=lineage.run,
        image=lineage.image if len(lineage.image) <= _MAX_NAME else sha256_hex(lineage.image.encode()),
        version=lineage.version,
        peer_timeout=config.cluster.peer_timeout_seconds,
        bits=sha256_hex(canonical_json(bits_depend_on(lineage)))[:16],
        **more,
    )
    chief = said[0]
    if not chief.get("is_over"):
        _check_same(said, chief)
    return said


def _check_same(said: list[dict[str, Any]], chief: Mapping[str, Any]) -> None:
    for number, one in enumerate(said):
        for name, what in _EQUAL.items():
            if one[name] != chief[name]:
                raise ConfigError(
                    f"cluster: worker {number} has {name} {one[name]!r}, worker 0 has {chief[name]!r}; give all the same {what}"
                )
        if one["digest"] != chief["digest"]:
            if {**chief["inputs"], "code": {}} == {**one["inputs"], "code": {}} != {"code": {}}:
                raise ConfigError(
                    f"cluster: model.build makes another model on worker {number} than on worker 0; it must build the "
                    "same each time"
                )
            what = differences(chief["inputs"], one["inputs"]) or "which do not fit into this line"
            raise ConfigError(
                f"cluster: worker {number} has other settings or data than worker 0 ({what}); give all the same"
            )


def are_bits_alike(said: list[dict[str, Any]]) -> bool:
    """Whether all workers compute equal bits; warns when they do not."""
    odd = [number for number, one in enumerate(said) if one["bits"] != said[0]["bits"]]
    if odd:
        warn(
            "cluster.mixed",
            workers=odd,
            reason="these workers have another CPU kind or other versions than worker 0: the run may end in other bits than the "
            "next one; recorded in the COMMIT",
        )
    return not odd


def compare_weights(exchange: Exchange, training: Training) -> None:
    """Prove before the commit that all workers hold the same weights.

    Raises:
        TrainingError: they do not.
        PeerLostError: a worker is gone.
    """
    if exchange is exchange_with_nobody:
        return
    said = exchange(weights=training.common_digest())
    odd = [number for number, one in enumerate(said) if one["weights"] != said[0]["weights"]]
    if odd:
        raise TrainingError(
            f"cluster: the weights of worker {odd[0]} are not those of worker 0; nothing is exported; look for cluster.mixed in "
            "the log, and give all workers the same kind of CPU"
        )
