"""The table of what can go wrong with a store: permanent or transient, exit code, and what a person does about it.

Three tables name what was decided: the errno of a folder, a server's status, a server's error code. `of_errno` and `of_request`
look things up there; for obstore the innermost cause is found in the text of the error, which is all that it gives. Transient is
what may pass by itself: `Store` tries it again until `store.deadline_seconds`, then the exit code is 69; the rest ends at once.
"""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from job.errors import AccessDeniedError, ConfigError, IntegrityError, JobError, NotFoundError, UnavailableError
from job.masking import masked
from job.store.backend import TransientError
from job.texts import one_line

CHECK_NETWORK = "check the endpoint and the network"
CHECK_DISK = "check the disk or the file server behind store.uri"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a fault is.

    Attributes:
        error: what ends the process; None: it may pass, and is tried again.
        text: the whole line, made with `where` and `cause`; of a fault that may pass, what a person does when it has not.
    """

    error: type[JobError] | None
    text: str

    def to_error(self, *, where: str, cause: str) -> Exception:
        """What a backend raises."""
        if self.error is None:
            return TransientError(cause, action=self.text)
        return self.error(self.text.format(where=where, cause=cause))


def _at_once(error: type[JobError], action: str) -> Verdict:
    return Verdict(error=error, text=f"store {{where}}: {{cause}}; {action}")


def _may_pass(action: str) -> Verdict:
    return Verdict(error=None, text=action)


_CLOSED = _at_once(AccessDeniedError, "choose a folder that can be written: store.uri")
_FULL = _at_once(UnavailableError, "make room or choose another folder, then start again")
_NO_FOLDER = _at_once(NotFoundError, "a file stands where store.uri needs a folder")
_NO_FILE = _at_once(NotFoundError, "a folder stands where the store needs a file; choose another store.uri")
_GONE = _at_once(NotFoundError, "the folder of store.uri was removed, or a link there leads nowhere")
_BAD_NAME = _at_once(ConfigError, "this file system takes no such name; choose a shorter run.id or store.uri")
_DAMAGED = _at_once(IntegrityError, "the file system is damaged: repair it, or choose another folder: store.uri")
UNABLE = _at_once(NotFoundError, "this file system cannot do what a store needs; choose another folder: store.uri")
_BUSY = _may_pass("the machine has too little of something (memory, open files, locks): look at its limits")
_AWAY = _may_pass(CHECK_DISK)

_ERRNOS: Mapping[Verdict, str] = {
    _CLOSED: "EACCES EPERM EROFS ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED",  # the keys: of NFS and SMB with Kerberos
    _FULL: "ENOSPC EDQUOT",
    _NO_FOLDER: "ENOTDIR EEXIST",
    _NO_FILE: "EISDIR ENOTEMPTY",
    _GONE: "ENOENT ELOOP",
    _BAD_NAME: "ENAMETOOLONG EILSEQ",
    _DAMAGED: "EUCLEAN EBADMSG",  # what ext4, XFS and Btrfs say of broken structures and of broken checksums
    _BUSY: "EAGAIN EINTR EBUSY ENOMEM EMFILE ENFILE ENOBUFS ENOLCK EDEADLK ETXTBSY EUSERS ETOOMANYREFS ERESTART ENOSR EOWNERDEAD",
    # EIO as well: a network file system says so while its server is away. ENOTCONN: a FUSE server died; the next pod has another.
    _AWAY: "EIO ENXIO ENODEV ENOMEDIUM EREMOTEIO ESTALE ETIMEDOUT ETIME EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET "
    "ECONNABORTED ECONNRESET ECONNREFUSED ENOTCONN ESHUTDOWN EPIPE ENOLINK ECOMM EPROTO ENONET EREMCHG ESTRPIPE EADDRINUSE "
    "EADDRNOTAVAIL ECANCELED EALREADY EINPROGRESS",
    # What no store can be made of; then what no file system says unless its driver is at fault, which does not pass either.
    UNABLE: "EOPNOTSUPP ENOTSUP ENOSYS EINVAL EMLINK EXDEV EFBIG ENOTTY ESPIPE EOVERFLOW ERANGE ENODATA EREMOTE EMEDIUMTYPE "
    "EDOM E2BIG ENOEXEC EBADF EFAULT ESRCH ECHILD ENOTBLK ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI "
    "EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT EBFONT ENOSTR ENOPKG EADV ESRMNT EMULTIHOP EDOTDOT ENOTUNIQ EBADFD "
    "ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT "
    "ESOCKTNOSUPPORT EPFNOSUPPORT EAFNOSUPPORT EISCONN ENOTNAM ENAVAIL EISNAM ENOTRECOVERABLE ERFKILL",
}
ERRNOS: Mapping[int, Verdict] = {
    getattr(errno, name): verdict
    for verdict, names in _ERRNOS.items()
    for name in names.split()
    if hasattr(errno, name)
}
"""By number; some systems lack some of the names."""

_DENIED = Verdict(error=AccessDeniedError, text="store {where}: access denied: {cause}; check the credentials")
NO_BUCKET = Verdict(
    error=NotFoundError, text="store {where}: the bucket does not exist; create it or correct store.uri ({cause})"
)
_ELSEWHERE = Verdict(error=ConfigError, text="store.region: the bucket of {where} is in another region: {cause}")
_REDIRECTED = Verdict(
    error=ConfigError,
    text="store.endpoint: {where} is redirected, and a write is not sent on: {cause}; name the place it leads to",
)
_REFUSED = _at_once(ConfigError, "the request was refused as wrong: check store.endpoint, store.region and store.uri")
_TOO_LITTLE = _at_once(UnavailableError, "make room or raise the quota, then start again")
_CANNOT = _at_once(NotFoundError, "what answers cannot do what a store needs; correct store.endpoint or store.uri")
_NO_STORE = _at_once(NotFoundError, "what answers is no such store; correct store.endpoint or store.uri")
_TRY_AGAIN = _may_pass(CHECK_NETWORK)
_NO_NAME = _may_pass("correct the host name in store.endpoint, or check the name server")
_TRUST = _at_once(ConfigError, "name a file with its issuer's certificate in SSL_CERT_FILE")
_OUT_OF_DATE = _at_once(ConfigError, "renew it there, or set this machine's clock")
_OTHER_HOST = _at_once(ConfigError, "correct the host in store.endpoint, or the certificate there")
_ENDPOINT = _at_once(ConfigError, "correct store.endpoint: its http or https, host and port")
_CREDENTIALS = _at_once(AccessDeniedError, "correct the credentials and the file that their variable names")
_ACCOUNT = _at_once(ConfigError, "name the storage account in store.account_name")
_ODD_VALUE = _at_once(ConfigError, "look for line breaks in the credentials, store.endpoint and store.region")

_STATUSES: Mapping[Verdict, tuple[int, ...]] = {
    _REDIRECTED: (*range(300, 400),),
    _REFUSED: (400, 406, 411, 414, 415, 416, 417, 422, 424, 426, 428, 431),
    _DENIED: (401, 402, 403, 407, 451, 511),  # 511: a network that wants a login first
    _NO_STORE: (404, 410),
    _CANNOT: (
        405,
        412,
        413,
        418,
        501,
        505,
        506,
        508,
        510,
    ),  # 412 only where no condition was set; 501: create-only writes
    _TOO_LITTLE: (507,),
    _TRY_AGAIN: (408, 409, 421, 423, 425, 429, 499, 500, 502, 503, 504),
}
STATUSES: Mapping[int, Verdict] = {number: verdict for verdict, numbers in _STATUSES.items() for number in numbers}

_CODES: Mapping[Verdict, str] = {
    NO_BUCKET: "NoSuchBucket ContainerNotFound ResourceNotFound FilesystemNotFound",
    _DENIED: "AccessDenied AccountProblem AllAccessDisabled InvalidAccessKeyId InvalidSecurity InvalidToken InvalidTokenId "
    "ExpiredToken ExpiredTokenException TokenRefreshRequired SignatureDoesNotMatch RequestTimeTooSkewed RequestExpired "
    "NotSignedUp UnauthorizedAccess MissingAuthenticationToken InvalidClientTokenId InvalidIdentityToken IDPRejectedClaim "
    "AuthenticationFailed AuthorizationFailure AuthorizationPermissionMismatch AuthorizationResourceTypeMismatch "
    "AccountIsDisabled InsufficientAccountPermissions InvalidAuthenticationInfo NoAuthenticationInformation "
    "UserProjectMissing UserProjectAccountProblem invalid_grant invalid_client unauthorized_client access_denied",
    _ELSEWHERE: "AuthorizationHeaderMalformed IllegalLocationConstraintException PermanentRedirect TemporaryRedirect Redirect",
    _REFUSED: "KeyTooLongError InvalidBucketName InvalidURI InvalidArgument InvalidRequest InvalidResourceName OutOfRangeInput",
    _CANNOT: "NotImplemented MethodNotAllowed EntityTooLarge RequestBodyTooLarge FeatureNotSupportedByStorageAccount",
    _TOO_LITTLE: "QuotaExceeded XMinioStorageFull XMinioAdminBucketQuotaExceeded InsufficientStorage",
    _TRY_AGAIN: "InternalError SlowDown ServiceUnavailable RequestTimeout OperationAborted ConditionalRequestConflict "
    "IncompleteBody BadDigest XAmzContentSHA256Mismatch Md5Mismatch OperationTimedOut ServerBusy TooManyRequests Throttling "
    "ThrottlingException RequestLimitExceeded BandwidthLimitExceeded XMinioServerNotInitialized IDPCommunicationError "
    "ContainerBeingDeleted",
}
CODES: Mapping[str, Verdict] = {code: verdict for verdict, codes in _CODES.items() for code in codes.split()}
"""Of S3, STS, GCS, Azure, OAuth and MinIO: it decides before the status, which S3 uses for opposite things (400)."""

_CAUSES: tuple[tuple[str, str, Verdict], ...] = (
    (
        r"InvalidMessage\(|AlertReceived\(|PeerIncompatible\(",
        "the other side speaks no TLS, or none of ours: ",
        _ENDPOINT,
    ),
    (r"hyper::Error\( Parse\(", "the other side does not speak HTTP: ", _ENDPOINT),
    (r"kind: Builder|BadScheme|InvalidUri", "no request can be made of it: ", _ENDPOINT),
    (r"Unable to extract metadata from headers", "a part of the reply is missing: ", _TRY_AGAIN),
    (r"dns error", "", _NO_NAME),
    (r"proxy authorization required", "", _DENIED),
    (
        r"token file|TokenFile|OpenCredentials|DecodeCredentials|Credential \{|InvalidAccessKey|service account file"
        r"|MissingSas|MalformedSas",
        "",
        _CREDENTIALS,
    ),
    (r"MissingAccount", "", _ACCOUNT),
    (r"HttpError|Error performing|JoinError", "", _TRY_AGAIN),
    (r"InvalidHeaderValue", "", _ODD_VALUE),
)
"""Found in the text of an error that has no status, the first that fits. What is refused, cut or silent may come back."""

_CERTIFICATES: Mapping[str, tuple[str, Verdict]] = {
    "UnknownIssuer": ("is of an issuer that this machine does not trust", _TRUST),
    "Expired": ("has expired", _OUT_OF_DATE),
    "NotValidYet": ("is not valid yet", _OUT_OF_DATE),
    "NotValidForName": ("is for another host name", _OTHER_HOST),
    "Revoked": ("was revoked", _OUT_OF_DATE),
}
"""Why rustls does not take a certificate, by its own names; each may end in `Context`."""

_KINDS: Mapping[str, Verdict] = {
    "InvalidPathError": _REFUSED,
    "UnknownConfigurationKeyError": _REFUSED,
    "NotSupportedError": _CANNOT,
    "NotImplementedError": _CANNOT,
    "PanicException": _ODD_VALUE,
    "JoinError": _TRY_AGAIN,
    "PreconditionError": _CANNOT,
    "NotModifiedError": _CANNOT,
    "AlreadyExistsError": _TRY_AGAIN,  # of a write that was not create-only: another one was under way
}
"""What obstore's class says where no code, status or cause does."""


def of_errno(number: int | None) -> Verdict:
    """What the operating system's error is; a number that has no name here does not pass by itself."""
    return ERRNOS.get(number or 0, UNABLE)


def reason_of(error: OSError) -> str:
    """What the operating system says, without the place that Python adds."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


def of_status(status: int) -> Verdict:
    """What a server's status is; one that is not known counts as the first of its hundred (RFC 9110, section 15)."""
    return STATUSES.get(status) or STATUSES.get(status // 100 * 100, _NO_STORE)


def of_request(error: BaseException) -> tuple[Verdict, str]:
    """What an error of obstore is, and its innermost cause as one line without secrets."""
    shown, _, debug = masked(str(error)).partition("\n\nDebug source:\n")
    shown, flat = one_line(shown), one_line(debug)
    code, said = _code_and_message(shown)
    status = re.search(r"status code: (\d{3})", shown)
    if code in CODES:
        return CODES[code], said
    if status:
        verdict = of_status(int(status[1]))
        is_refused = verdict.error is not None and "Error performing token request" in shown
        return _DENIED if is_refused else verdict, said or _request(shown)[:300]
    if "redirect without LOCATION" in shown:
        return _ELSEWHERE, _request(shown)
    if certificate := re.search(r"InvalidCertificate\( (\w+?)(?:Context)?\b", flat):
        return _of_certificate(certificate[1], flat)
    request, innermost = _request(shown)[:300], _innermost(debug)
    cause = request if innermost in request else f"{request}: {innermost}"
    for pattern, words, verdict in _CAUSES:
        if re.search(pattern, f"{shown} {flat}"):
            return verdict, f"{words}{cause}"
    return _KINDS.get(type(error).__name__, _NO_STORE), cause


def _code_and_message(shown: str) -> tuple[str, str]:
    """The server's own words, in XML, in the JSON of a token service, or for one of several deletes; empty without any."""
    if one := re.search(r"\(code: (\w+)\)", shown):
        return one[1], shown[:300]
    code = re.search(r"<Code>(.*?)</Code>|\"error\": ?\"(.*?)\"", shown)
    if not code:
        return "", ""
    message = re.search(r"<Message>(.*?)</Message>|\"error_description\": ?\"(.*?)\"", shown)
    name = code[1] or code[2] or ""
    return name, f"{name}: {message[1] or message[2]}" if message else name


def _of_certificate(name: str, flat: str) -> tuple[Verdict, str]:
    words, verdict = _CERTIFICATES.get(name, ("cannot be verified", _TRUST))
    names = re.findall(r'DnsName\(\\?"(.*?)\\?"\)|OtherError\( (\w+)', flat)
    host = re.search(r"https://([^/ ]+)", flat)
    details = ", ".join([name, *(one or other for one, other in names)])
    return verdict, f"the certificate of {host[1] if host else 'the server'} {words} ({details})"


def _request(shown: str) -> str:
    """Such as `PUT http://host/key`, and what the server said to it; without times, which differ from try to try."""
    text = re.sub(r"^.*?Error performing (\w+ \S+) in \S+ +- |^Generic \w+ error: ", r"\1: ", shown).removeprefix(": ")
    text = text.replace(": HTTP error: error sending request", "").replace(
        "Server returned non-2xx status code", "status"
    )
    return text.rstrip(" :")


def _innermost(debug: str) -> str:
    """The deepest line of Rust's pretty-printed error that says something: there the operating system's words stand."""
    lines = [line for line in debug.splitlines() if re.search(r"\w", line) and not line.lstrip().startswith("store:")]
    deepest = max((_depth(line) for line in lines), default=0)
    leaves = [line.strip().rstrip(",") for line in lines if _depth(line) == deepest]
    quoted = [found[1] for leaf in leaves if (found := re.search(r'"(.*)"', leaf))]
    return [*leaves, *quoted][-1].rpartition("source: ")[2].replace('\\"', '"')[:200] if deepest else ""


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
