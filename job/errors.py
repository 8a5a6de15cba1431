"""One typed error per exit code. Modules raise them; those that end the process end in `job/__main__.py`.

Some modules catch one and go on: where a failure costs a warning and not the run (retention, metrics, the stored log), and
where the next try may succeed (`fetch --every`).

A message is one line: the name or key, the rule, what was received, and what to do.
"""

from typing import ClassVar

from job.contract import ExitCode


class JobError(Exception):
    """Base of every error that this program raises on purpose."""

    code: ClassVar[ExitCode] = ExitCode.UNKNOWN


class ConfigError(JobError):
    """Bad config: no retry can help."""

    code = ExitCode.CONFIG


class IntegrityError(JobError):
    """Data, an export or a checkpoint is not what its digest or its format says."""

    code = ExitCode.INTEGRITY


class NotFoundError(JobError):
    """The other side answered that it does not exist: dataset, bucket, key, GPU."""

    code = ExitCode.NOT_FOUND


class UnavailableError(JobError):
    """A store, data source or other service could not be reached, or has no room; a retry may help."""

    code = ExitCode.UNAVAILABLE


class TrainingError(JobError):
    """The training itself failed, such as by a loss that is not finite."""

    code = ExitCode.TRAINING_FAILED


class ConflictError(JobError):
    """The run exists with another result digest, or is committed with different content."""

    code = ExitCode.CONFLICT


class RetiredError(ConflictError):
    """The run was committed, and retention has removed it or has begun to. A start of it ends with 0."""


class GateRefusedError(JobError):
    """The run is committed, and the gate does not let it become the champion."""

    code = ExitCode.GATE_REFUSED


class PeerLostError(JobError):
    """Another worker of the run is gone; all have to start again from the newest checkpoint."""

    code = ExitCode.PEER_LOST


class AccessDeniedError(JobError):
    """Access denied, or no credentials were found."""

    code = ExitCode.ACCESS_DENIED
