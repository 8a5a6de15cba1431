"""What can go wrong between the client and the cluster, as a small tree; each error has the exit code of the job that fits.

A message is one line: what, what the API server said with its status, and what to do. Those that end the process end in
`k8s/__main__.py`.
"""

from typing import ClassVar

from job.contract import ExitCode
from job.errors import IntegrityError
from job.records import parse_object
from job.texts import one_line, quoted


class ClientError(Exception):
    """Base of every error that the client raises on purpose."""

    code: ClassVar[ExitCode] = ExitCode.UNKNOWN


class UsageError(ClientError):
    """Bad arguments, settings or kubeconfig: no retry can help."""

    code = ExitCode.CONFIG


class RefusedError(UsageError):
    """400, 422: the API server does not accept the object, or an admission webhook does not."""


class NotFoundError(ClientError):
    """404: the run, the release or its namespace is not there."""

    code = ExitCode.NOT_FOUND


class ConflictError(ClientError):
    """409, or something of that name exists that is not ours."""

    code = ExitCode.CONFLICT


class UnavailableError(ClientError):
    """5xx, no reply, no cluster at all: a retry may help."""

    code = ExitCode.UNAVAILABLE


class ThrottledError(UnavailableError):
    """429: later."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoReplyError(UnavailableError):
    """The connection ended before the reply: what was asked for may have been done, or not."""


class ReplyError(ClientError):
    """A reply that no API server gives: too long, or something else than was asked for. A retry does not help."""

    code = ExitCode.INTEGRITY


class ExpiredError(UnavailableError):
    """410: the place in the watch is too old; list again."""


class DeadlineError(UnavailableError):
    """What was waited for did not come in time."""


class NotStartedError(UnavailableError):
    """A pod has no log yet."""


class AccessDeniedError(ClientError):
    """The API server refuses: it does not know the caller, or the caller may not do this."""

    code = ExitCode.ACCESS_DENIED


class UnauthenticatedError(AccessDeniedError):
    """401."""


class ForbiddenError(AccessDeniedError):
    """403: RBAC, a quota, or an admission rule."""


def error_from_reply(
    *, status: int, body: bytes, what: str, namespace: str, retry_after: str | None = None
) -> ClientError:
    """The error for a reply that is not 2xx.

    Args:
        body: a `Status` object, or whatever a proxy on the way has said.
        what: such as `create job train-x`.
        retry_after: the header of that name.
    """
    said = _message_of(body)
    text = f"{what} in namespace {namespace}: {status}" + (f": {said}" if said else "")
    if status == 429:
        return ThrottledError(f"{text}; try again later", retry_after_seconds=_seconds(retry_after))
    if status == 403:
        return ForbiddenError(f"{text}; {_advice_for_forbidden(said, namespace)}")
    if status >= 500:
        return UnavailableError(f"{text}; try again later")
    kind, action = _ERRORS.get(status, (ClientError, "see what the API server says"))
    return kind(f"{text}; {action}")


_ERRORS: dict[int, tuple[type[ClientError], str]] = {
    400: (RefusedError, "correct what it names"),
    401: (UnauthenticatedError, "log in again, or name another --context or --kubeconfig"),
    404: (NotFoundError, "look with mnist-k8s list, or name another --namespace"),
    409: (ConflictError, "look with mnist-k8s list"),
    410: (ExpiredError, "list again"),
    422: (RefusedError, "correct what it names"),
}


def _advice_for_forbidden(said: str, namespace: str) -> str:
    if "exceeded quota" in said:
        return f"free some of it, or have it raised: kubectl -n {quoted(namespace)} describe quota"
    if "admission webhook" in said or "denied the request" in said or "ValidatingAdmissionPolicy" in said:
        return "a rule of the cluster refuses it: change what it names, or ask who runs the cluster"
    return "ask for the Role that the chart makes with clientRole.create=true"


def _message_of(body: bytes) -> str:
    try:
        message = parse_object(body, name="the reply").get("message", "")
    except IntegrityError:
        message = body.decode(errors="replace")
    return one_line(message, limit=500)


def _seconds(retry_after: str | None) -> float:
    try:
        return min(30.0, max(0.1, float(retry_after or 1)))
    except ValueError:  # a date: not what the API server sends
        return 1.0
