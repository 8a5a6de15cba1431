"""The table of faults: a decision for each errno, status, code and cause, made on purpose, and what becomes of it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from job.config import StoreSection
from job.contract import ExitCode
from job.errors import JobError, NotFoundError
from job.store import faults
from job.store.backend import AlreadyExists, TransientError
from job.store.folder import FolderBackend
from job.store.open import open_store
from tests.conftest import REPOSITORY, Finished, RunJob, skip_or_fail
from tests.job.store.certificates import Authority, serve_tls
from tests.job.store.s3_faults import BUCKET, Fault, FaultyS3, reply, serve

ENV = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}


def code_of(verdict: faults.Verdict) -> str:
    """Such as `66`, or `69 retried`."""
    return "69 retried" if verdict.error is None else str(verdict.error.code.value)


class TestErrnos:
    @pytest.mark.parametrize("name", errno.errorcode.values())
    def test_every_errno_is_decided_on_purpose(self, name: str) -> None:
        assert getattr(errno, name) in faults.ERRNOS

    @pytest.mark.parametrize(
        ("code", "names"),
        [
            ("64", "ENAMETOOLONG EILSEQ"),
            ("65", "EUCLEAN EBADMSG"),
            ("66", "ENOTDIR EEXIST EISDIR ELOOP ENOENT EOPNOTSUPP ENOTSUP ENOSYS EINVAL EMLINK EXDEV EFBIG EBADF"),
            ("69", "ENOSPC EDQUOT"),
            (
                "69 retried",
                "EIO ESTALE ETIMEDOUT ENOTCONN EAGAIN EINTR EBUSY EMFILE ENOMEM ENOLCK EHOSTDOWN ENODEV ECONNRESET",
            ),
            ("77", "EACCES EPERM EROFS EKEYEXPIRED"),
        ],
    )
    def test_exit_code(self, code: str, names: str) -> None:
        assert {name: code_of(faults.of_errno(getattr(errno, name))) for name in names.split()} == dict.fromkeys(
            names.split(), code
        )

    @pytest.mark.parametrize(
        "number", [None, 0, 524, 4095]
    )  # 524: the kernel's own ENOTSUPP, which NFS and FUSE let through
    def test_number_without_a_name_does_not_pass(self, number: int | None) -> None:
        assert code_of(faults.of_errno(number)) == "66"


class TestStatuses:
    @pytest.mark.parametrize("status", range(400, 600))
    def test_every_status_is_decided_on_purpose(self, status: int) -> None:
        """Those that no standard knows count as the first of their hundred."""
        known = {"64", "66", "69", "69 retried", "77"}
        assert code_of(faults.of_status(status)) in known
        if status not in faults.STATUSES:
            assert faults.of_status(status) is faults.of_status(status // 100 * 100)

    @pytest.mark.parametrize(
        ("code", "statuses"),
        [
            ("64", (301, 302, 307, 308, 400, 411, 414, 431, 444, 499 - 1)),
            ("66", (404, 405, 410, 412, 413, 501, 505)),
            ("69", (507,)),
            ("69 retried", (408, 409, 425, 429, 500, 502, 503, 504, 520, 598)),
            ("77", (401, 403, 407, 511)),
        ],
    )
    def test_exit_code(self, code: str, statuses: tuple[int, ...]) -> None:
        assert {status: code_of(faults.of_status(status)) for status in statuses} == dict.fromkeys(statuses, code)

    def test_codes_say_more_than_the_status_that_they_share(self) -> None:
        """S3 answers 400 for a stale token, a wrong region, a name that is too long, and a body that came too slowly."""
        wanted = {"ExpiredToken": "77", "AuthorizationHeaderMalformed": "64", "KeyTooLongError": "64"}
        wanted |= {"RequestTimeout": "69 retried", "QuotaExceeded": "69", "NoSuchBucket": "66", "invalid_grant": "77"}
        assert {code: code_of(faults.CODES[code]) for code in wanted} == wanted


SENT = "Generic S3 error: Error performing GET http://host/k in 1.5ms - HTTP error: error sending request"


def obstore_error(kind: str, shown: str, *leaves: str) -> Exception:
    """What obstore raises, with such leaves at the deepest level of its text."""
    lines = "\n".join(f"            {leaf}" for leaf in leaves)
    inner = "HttpError" if shown == SENT else "Other"
    debug = f'Generic {{\n    store: "S3",\n    source: Outer(\n        {inner} {{\n{lines}\n        }},\n    ),\n}}'
    made: Exception = type(kind, (Exception,), {})(f"{shown}\n\nDebug source:\n{debug if leaves else ''}")
    return made


# In the words of obstore 0.12.1 and of the libraries below it.
CAUSES: dict[str, tuple[Exception, str, str]] = {
    "no route": (obstore_error("GenericError", SENT, 'message: "No route to host"'), "69 retried", "No route to host"),
    "no answer": (obstore_error("GenericError", SENT, "kind: Request", "source: TimedOut"), "69 retried", "TimedOut"),
    "cut off": (obstore_error("GenericError", SENT, "IncompleteMessage"), "69 retried", "IncompleteMessage"),
    "dns": (
        obstore_error("GenericError", SENT, '"dns error"', 'error: "Name or service not known"'),
        "69 retried",
        "Name or service not known",
    ),
    "revoked": (obstore_error("GenericError", SENT, "InvalidCertificate(", "Revoked"), "64", "was revoked"),
    "not valid yet": (
        obstore_error("GenericError", SENT, "InvalidCertificate(", "NotValidYetContext {"),
        "64",
        "is not valid yet",
    ),
    "handshake": (
        obstore_error("GenericError", SENT, "AlertReceived(HandshakeFailure)"),
        "64",
        "AlertReceived(HandshakeFailure)",
    ),
    "no etag": (
        obstore_error("GenericError", "Generic S3 error: Unable to extract metadata from headers", "MissingEtag"),
        "69 retried",
        "MissingEtag",
    ),
    "azure token": (
        obstore_error("GenericError", "Generic MicrosoftAzure error: Error reading federated token file"),
        "77",
        "federated token file",
    ),
    "gcs file": (
        obstore_error(
            "GenericError", "Generic GCS error: Unable to open service account file from /x.json: No such file"
        ),
        "77",
        "/x.json",
    ),
    "oauth": (
        obstore_error(
            "GenericError",
            "Error performing POST REDACTED in 1ms - Server returned non-2xx status code: 400 Bad Request: "
            '{"error": "invalid_grant", '
            '"error_description": "Invalid JWT Signature."}',
        ),
        "77",
        "invalid_grant: Invalid JWT Signature.",
    ),
    "unsupported": (obstore_error("NotImplementedError", "Operation put_opts not yet implemented"), "66", "put_opts"),
    "panic": (
        obstore_error("PanicException", "called `Result::unwrap()` on an `Err` value: InvalidHeaderValue"),
        "64",
        "InvalidHeaderValue",
    ),
    "what nobody knows": (
        obstore_error("GenericError", "Generic S3 error: something new", "New"),
        "66",
        "something new",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_cause_is_decided_and_said(name: str) -> None:
    error, code, words = CAUSES[name]
    verdict, cause = faults.of_request(error)
    assert (code_of(verdict), words in cause, "\n" in cause, "Debug" in cause) == (code, True, False, False)


def test_reason_of_a_retry_does_not_change_from_try_to_try() -> None:
    first, second = (
        obstore_error("GenericError", SENT.replace("1.5ms", took), "IncompleteMessage") for took in ("1.5ms", "27.1µs")
    )
    assert faults.of_request(first) == faults.of_request(second)


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with serve() as state:
        yield state


def check_store(
    run_job: RunJob, endpoint: str, *, env: dict[str, str] | None = None, arguments: str = "store check"
) -> Finished:
    settings = (f"--store.uri=s3://{BUCKET}/prefix", f"--store.endpoint={endpoint}", "--store.region=x")
    done = run_job(*arguments.split(), *settings, "--store.deadline_seconds=4", env=env or ENV)
    assert "canary" not in done.stdout + done.stderr
    assert done.error.count("\n") == 0
    return done


ANSWERS: dict[str, tuple[Fault, int, str]] = {
    "create-only writes unknown": (reply(501, "NotImplemented"), 66, "NotImplemented: as told; what answers cannot do"),
    "proxy limits bodies": (Fault(status=413, body="<html>"), 66, "status: 413 Payload Too Large"),
    "web server": (Fault(status=405, body=""), 66, "status: 405 Method Not Allowed"),
    "plain http to a tls port": (
        Fault(status=400, body="<html>The plain HTTP request was sent to HTTPS port"),
        64,
        "HTTPS port",
    ),
    "full": (reply(507, "XMinioStorageFull"), 69, "XMinioStorageFull: as told; make room"),
    "quota": (reply(403, "QuotaExceeded"), 69, "make room or raise the quota"),
    "proxy wants a login": (Fault(status=407), 77, "access denied: PUT http://127.0.0.1"),
    "portal": (Fault(status=511), 77, "status: 511 Network Authentication Required"),
    "name too long": (reply(400, "KeyTooLongError"), 64, "KeyTooLongError: as told"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_permanent_answer_is_not_tried_again(name: str, server: FaultyS3, run_job: RunJob) -> None:
    server.always, code, words = ANSWERS[name]
    done = check_store(run_job, server.endpoint)
    assert (done.code, len(server.requests)) == (code, 1), done.error
    assert words in done.error


def test_transient_answer_is_said_once_and_nothing_more_is_asked(server: FaultyS3, run_job: RunJob) -> None:
    server.always = reply(400, "RequestTimeout", "too slow")
    done = check_store(run_job, server.endpoint)
    assert (done.code, set(server.requests)) == (69, {"PUT", "GET"}), (
        "a create looks after each failure; no delete follows"
    )
    assert "create checks/" in done.error and "RequestTimeout: too slow; check the endpoint" in done.error


@pytest.mark.parametrize("command", ["runs", "gc", "gc --delete"])
def test_page_with_200_is_no_empty_store(command: str, server: FaultyS3, run_job: RunJob) -> None:
    server.always = Fault(status=200, body="<html><body>login</body></html>")
    done = check_store(run_job, server.endpoint, arguments=command)
    assert (done.code, "no such store" in done.error) == (66, True), done.stdout


@pytest.mark.parametrize(
    "env",
    [
        {
            "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token",
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/x",
        },
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/nonexistent/token",
        },
    ],
)
def test_missing_token_file_is_access_denied_at_once(env: dict[str, str], run_job: RunJob) -> None:
    done = check_store(run_job, "http://127.0.0.1:1", env=env)
    assert done.code == 77
    assert "token file '/nonexistent/token': No such file or directory" in done.error


def test_delete_that_meets_no_bucket_says_so(server: FaultyS3) -> None:
    server.always = reply(404, "NoSuchBucket")
    section = StoreSection(uri=f"s3://{BUCKET}/prefix", endpoint=server.endpoint, region="x", deadline_seconds=1)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENV.items():
            patched.setenv(name, value)
        with pytest.raises(NotFoundError, match="the bucket does not exist"):
            open_store(section, environ=ENV).delete("key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests."""
    return Authority(tmp_path_factory.mktemp("certificates"))


class TestCertificates:
    @pytest.mark.parametrize(
        ("certificate", "is_trusted", "words"),
        [
            ("good", False, "is of an issuer that this machine does not trust (UnknownIssuer); name a file with"),
            ("self-signed", False, "; name a file with its issuer's certificate in SSL_CERT_FILE"),
            ("other-host", True, "is for another host name (NotValidForName, other.example); correct the host"),
            ("expired", True, "has expired (Expired); renew it there, or set this machine's clock"),
            ("future", True, "is not valid yet (NotValidYet); renew it there"),
        ],
    )
    def test_certificate_is_refused_at_once(
        self, certificate: str, is_trusted: bool, words: str, authority: Authority, run_job: RunJob
    ) -> None:
        with serve_tls(authority.certificate(certificate)) as (endpoint, requests):
            done = check_store(
                run_job, endpoint, env={**ENV, "SSL_CERT_FILE": str(authority.path)} if is_trusted else ENV
            )
        assert (done.code, requests) == (64, [])
        assert f"the certificate of {endpoint.removeprefix('https://')} " in done.error
        assert words in done.error

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
    def test_issuer_is_trusted_through_the_variable(
        self, variable: str, authority: Authority, server: FaultyS3, run_job: RunJob
    ) -> None:
        value = str(authority.path if variable.endswith("FILE") else authority.folder)
        with serve_tls(authority.certificate("good"), s3=server) as (endpoint, _):
            done = check_store(run_job, endpoint, env={**ENV, variable: value})
        assert (done.code, server.objects) == (0, {}), done.error

    @pytest.mark.parametrize("scheme", ["https", "http"])
    def test_other_scheme_than_the_server_speaks_is_a_wrong_endpoint(
        self, scheme: str, server: FaultyS3, run_job: RunJob
    ) -> None:
        """Only one way round can be told: a TLS server may simply cut off who speaks HTTP."""
        if scheme == "http":
            server.always = Fault(status=400, body="Client sent an HTTP request to an HTTPS server.")
            endpoint, words = server.endpoint, "Client sent an HTTP request"
        else:
            endpoint, words = server.endpoint.replace("http:", "https:"), "speaks no TLS"
        done = check_store(run_job, endpoint)
        assert (done.code, words in done.error, "store.endpoint" in done.error) == (64, True, True), done.error


# Lets the calls of `CALLS` fail with the errno of an environment variable.
LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
static int told(const char *name) { const char *value = getenv(name); return errno = value ? atoi(value) : 0; }
int linkat(int a, const char *b, int c, const char *d, int e) {
  return told("FAULT_LINK") ? -1
    : ((int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat"))(a, b, c, d, e);
}
int renameat2(int a, const char *b, int c, const char *d, unsigned e) {
  return told("FAULT_RENAME") ? -1
    : ((int (*)(int, const char *, int, const char *, unsigned))dlsym(RTLD_NEXT, "renameat2"))(a, b, c, d, e);
}
int fsync(int file) {
  struct stat status;
  int is_folder = fstat(file, &status) == 0 && S_ISDIR(status.st_mode);
  return told(is_folder ? "FAULT_FSYNC_FOLDER" : "FAULT_FSYNC") ? -1 : ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for LD_PRELOAD, below Python and the C library's callers."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        skip_or_fail("needs Linux and a C compiler")
    assert compiler
    folder = tmp_path_factory.mktemp("library")
    (folder / "faults.c").write_text(LIBRARY)
    made = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(folder / "faults.c"), "-ldl"], check=True)
    return made


def faulty(library: Path, **failing: str) -> dict[str, str]:
    """The environment in which so many calls fail, each named with its errno."""
    numbers = {f"FAULT_{call.upper()}": str(getattr(errno, name, name)) for call, name in failing.items()}
    return {"LD_PRELOAD": str(library), **numbers}


class TestFileSystems:
    @pytest.mark.parametrize("reason", ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EINVAL", "EXDEV"])
    def test_without_hard_links_a_name_is_given_once(
        self, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", lambda source, target, **options: _fail(reason))
        backend = FolderBackend(tmp_path / "store")
        backend.create("a/key", b"first")
        with pytest.raises(AlreadyExists):
            backend.create("a/key", b"second")
        assert (backend.get("a/key"), os.listdir(tmp_path / "store" / "a")) == (b"first", ["key"])

    @pytest.mark.parametrize("reason", ["EINVAL", "EOPNOTSUPP", "ENOSYS", "EBADF"])
    def test_folder_that_cannot_be_fsynced_is_passed_over(
        self, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync_files_only(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
            _fail(reason) if Path(f"/proc/self/fd/{descriptor}").is_dir() else fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync_files_only)
        backend = FolderBackend(tmp_path / "store")
        backend.create("a/key", b"first")
        backend.put("a/key", b"second")
        assert backend.get("a/key") == b"second"

    def test_store_on_such_a_file_system_passes_the_check(self, library: Path, tmp_path: Path, run_job: RunJob) -> None:
        env = faulty(library, link="EPERM", fsync_folder="EINVAL")
        done = run_job("store", "check", f"--store.uri=file:{tmp_path}/store", env=env)
        assert (done.code, done.error) == (0, "")
        assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == []

    @pytest.mark.parametrize(
        ("failing", "code", "words"),
        [
            (
                {"link": "EPERM", "rename": "EINVAL"},
                66,
                "no hard links (Operation not permitted) and no exclusive rename",
            ),
            ({"link": "EOPNOTSUPP", "rename": "ENOSYS"}, 66, "this file system cannot do what a store needs"),
            ({"link": "EACCES"}, 77, "Permission denied; choose a folder that can be written"),
            ({"link": "EPERM", "rename": "EPERM"}, 77, "Operation not permitted; choose a folder"),
            ({"fsync": "EINVAL"}, 66, "Invalid argument; this file system cannot do"),
            ({"fsync": "EDQUOT"}, 69, "Disk quota exceeded; make room"),
            ({"fsync": "EUCLEAN"}, 65, "Structure needs cleaning; the file system is damaged"),
            ({"link": "524"}, 66, "Unknown error 524; this file system cannot do"),
            (
                {"fsync": "EIO"},
                69,
                "failed for 3 s (store.deadline_seconds): Input/output error; check the disk or the file server",
            ),
            ({"link": "ESTALE"}, 69, "Stale file handle; check the disk or the file server"),
            ({"fsync": "ENOMEM"}, 69, "Cannot allocate memory; the machine has too little of something"),
        ],
    )
    def test_fault_ends_with_its_code_and_leaves_nothing(
        self, failing: dict[str, str], code: int, words: str, library: Path, tmp_path: Path, run_job: RunJob
    ) -> None:
        settings = (f"--store.uri=file:{tmp_path}/store", "--store.deadline_seconds=3")
        done = run_job("store", "check", *settings, env=faulty(library, **failing))
        assert (done.code, words in done.error, done.error.count("\n")) == (code, True, 0), done.error
        assert ("store.retry" in done.stdout + done.stderr) is ("failed for" in done.error), (
            "only what may pass is tried again"
        )
        assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == []

    def test_racing_creators_without_hard_links_have_one_winner_and_readers_see_it_whole(
        self, library: Path, tmp_path: Path
    ) -> None:
        """Six processes write each of 30 keys; a seventh reads what is there meanwhile."""
        command = [sys.executable, "-c", RACE, str(tmp_path / "store")]
        env = {**os.environ, **faulty(library, link="EPERM"), "PYTHONPATH": str(REPOSITORY)}
        racers = [
            subprocess.Popen([*command, role], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for role in ("a", "b", "c", "d", "e", "f", "reader")
        ]
        for racer in racers:
            assert racer.stdout and racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [json.loads(racer.communicate(timeout=100)[0]) for racer in racers]
        *written, torn = said
        assert torn == []
        for key in range(30):
            assert len({seen[key] for seen in written}) == 1, "all were told of the same winner"

    def test_link_and_rename_refuse_the_names_of_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One attempt may find hard links where another, in an older sandbox, does not."""
        backend, link = FolderBackend(tmp_path / "store"), os.link
        backend.create("linked", b"first")
        monkeypatch.setattr(os, "link", _no_link)
        backend.create("renamed", b"first")
        with pytest.raises(AlreadyExists):
            backend.create("linked", b"second")
        monkeypatch.setattr(os, "link", link)
        with pytest.raises(AlreadyExists):
            backend.create("renamed", b"second")
        assert (backend.get("linked"), backend.get("renamed")) == (b"first", b"first")

    def test_rename_on_smb_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Linux' client asks the server to replace, whatever the flag says, so that two machines could both win."""
        monkeypatch.setattr(os, "link", _no_link)
        monkeypatch.setattr("job.store.folder._file_system", lambda folder: "cifs")
        with pytest.raises(
            NotFoundError, match=r"key: no hard links .* so that two attempts could both write it; this file"
        ):
            FolderBackend(tmp_path / "store").create("key", b"data")
        assert os.listdir(tmp_path / "store") == []


def _no_link(source: str, target: str, **options: object) -> None:
    _fail("EPERM")


def _fail(reason: str) -> NoReturn:
    number = getattr(errno, reason)
    raise OSError(number, os.strerror(number))


RACE = """
import json, sys, time
from pathlib import Path
from job.config import StoreSection
from job.store.open import open_store
folder, role = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
store = open_store(StoreSection(uri=f"file:{folder}"), environ={})
wanted = {name: (name * 200_000).encode() for name in "abcdef"}
if role == "reader":
    torn, end = [], time.monotonic() + 20
    while len(store.list_objects("")) < 30 and time.monotonic() < end:
        for entry in store.list_objects(""):
            if store.get(entry.key) not in wanted.values():
                torn.append(entry.key)
    print(json.dumps(torn))
else:
    print(json.dumps([store.create(f"key-{number:02}", wanted[role])[:1].decode() for number in range(30)]))
"""


def test_verdicts_make_the_errors_that_they_name() -> None:
    verdicts = {*faults.ERRNOS.values(), *faults.STATUSES.values(), *faults.CODES.values()}
    for verdict in verdicts:
        error = verdict.to_error(where="file:/x", cause="{odd} words")
        assert isinstance(error, TransientError if verdict.error is None else JobError)
        assert "{odd} words" in str(error)
        if isinstance(error, JobError):
            assert error.code in set(ExitCode) - {ExitCode.OK, ExitCode.UNKNOWN}
