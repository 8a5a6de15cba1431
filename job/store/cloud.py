"""The `s3:`, `gs:` and `az:` stores through obstore: one request a verb, failures translated.

Retries are not made here: counts of retries bound nothing, so `Store` owns them with a deadline.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from obstore.store import S3Store, from_url

from job import ambient
from job.config import StoreSection
from job.errors import ConfigError, NotFoundError
from job.store.backend import AlreadyExists, Entry, check_bytes
from job.store.credentials import culprit, is_clean, require_clean_values, require_credentials
from job.store.faults import NO_BUCKET, of_errno, of_request
from job.texts import one_line

if TYPE_CHECKING:
    from obstore import ObjectMeta

NEVER_WRITTEN = "checks/never-written"
"""A key that no program here writes."""

_MAX_KEY_BYTES = 1024
"""Of S3, Google Cloud Storage and Azure alike."""


class CloudBackend:
    """Objects in a bucket, below an optional prefix."""

    def __init__(self, config: StoreSection, *, environ: Mapping[str, str]) -> None:
        self._uri = uri = config.uri
        self._scheme = scheme = uri.partition(":")[0]
        require_credentials(scheme, environ=environ)
        require_clean_values(scheme, environ=environ)
        if not is_clean(config.region or ""):
            raise ConfigError(
                f"store.region: must be printable and without spaces around it, received {config.region!r}"
            )
        ambient.check_store(scheme, environ, has_endpoint=config.endpoint is not None)
        endpoint = config.endpoint or (ambient.s3_endpoint(environ) if scheme == "s3" else None)
        timeout = timedelta(seconds=config.timeout_seconds)
        options: dict[str, Any] = {
            "client_options": {
                "timeout": timeout,
                "connect_timeout": min(timeout, timedelta(seconds=10)),
                "allow_http": bool(endpoint and endpoint.startswith("http://")),
            },
            "retry_config": {"max_retries": 0, "retry_timeout": timeout},
        }
        self._is_store = False
        try:
            self._store = _open(config, scheme=scheme, endpoint=endpoint, environ=environ, options=options)
        except BaseError as error:
            verdict, cause = of_request(error)
            if verdict.error is NotFoundError:  # nothing was asked yet
                name = culprit(cause, scheme=scheme, environ=environ)
                raise ConfigError(f"{name}: {uri} cannot be opened: {cause}") from error
            raise verdict.to_error(where=uri, cause=cause) from error
        except ValueError as error:
            raise ConfigError(f"store.uri: {uri} cannot be opened: {one_line(error)}") from error

    def create(self, key: str, data: bytes) -> None:
        """Write a new object with one conditional PUT; `AlreadyExists` when the key is taken."""
        with self._translated():
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                raise AlreadyExists(key) from error

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        with self._translated():
            obstore.put(self._store, key, data, use_multipart=False)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read an object; `FileNotFoundError` when absent."""
        with self._translated():
            answer = obstore.get(self._store, key)
            check_bytes(answer.meta["size"], key=key, max_bytes=max_bytes)
            return bytes(answer.bytes())

    def list_objects(self, prefix: str) -> list[Entry]:
        """All objects under a folder, sorted by key."""
        with self._translated():
            found = self._list(prefix)
            self._doubt(is_empty=not found)
        entries = [
            Entry(key=item["path"], num_bytes=item["size"], modified_seconds=item["last_modified"].timestamp())
            for item in found
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""
        with self._translated():
            try:
                level = obstore.list_with_delimiter(self._store, prefix or None)
                self._doubt(is_empty=not level["common_prefixes"] and not level["objects"])
                paths = [*level["common_prefixes"]]
            except InvalidPathError:
                keys = (item["path"].removeprefix(prefix).partition("/") for item in self._list(prefix))
                paths = [*{name for name, slash, _ in keys if slash}]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def _list(self, prefix: str) -> "list[ObjectMeta]":
        """All objects under a folder, without foreign ones such as `runs//x`, which obstore cannot name.

        A page of a listing that holds one is an error. Their empty segments, `.` and `..` sort before all names of this program:
        a listing from `0` on has none directly under the folder, and those further down are found by a listing of each folder.
        """
        for offset in (None, f"{prefix}0"):
            with suppress(InvalidPathError):
                return [*obstore.list(self._store, prefix or None, offset=offset).collect()]
        level = obstore.list_with_delimiter(self._store, prefix or None)
        below = (item for folder in level["common_prefixes"] for item in self._list(f"{folder}/"))
        return [*level["objects"], *below]

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        with self._translated():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError as error:
                # S3 says nothing of absent keys: this is no answer of a store.
                if self._scheme == "s3" or of_request(error)[0] is NO_BUCKET:
                    raise

    def check_key(self, key: str) -> None:
        """Refuse a key that is too long with the prefix of the URI."""
        prefix = self._uri.partition("://")[2].partition("/")[2].strip("/")
        num_bytes = len(f"{prefix}/{key}".lstrip("/").encode())
        if num_bytes > _MAX_KEY_BYTES:
            raise ConfigError(
                f"store.uri: {self._uri}: the run needs keys of {num_bytes} bytes, such as ...{key[-80:]}, at most "
                f"{_MAX_KEY_BYTES} are possible; use a shorter prefix, run.id or promotion.model_name"
            )

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def sweep(self, prefix: str, *, older_than_seconds: float) -> None:
        """Nothing to do: one PUT leaves nothing behind."""

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what obstore raises into what the table says of it; a key that is missing is a `FileNotFoundError`."""
        try:
            yield
        except (ObjectNotFoundError, FileNotFoundError) as error:
            verdict, cause = of_request(error)
            raise (self._to_error(error) if verdict is NO_BUCKET else FileNotFoundError(cause)) from error
        except OSError as error:
            raise of_errno(error.errno).to_error(where=self._uri, cause=one_line(error)) from error
        except (BaseError, NotImplementedError) as error:
            raise self._to_error(error) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # pyo3's: no `Exception`, and nobody can import it
                raise
            raise self._to_error(error) from error

    def _doubt(self, *, is_empty: bool) -> None:
        """Any web page with 200 passes for an empty listing: ask once for a key that nobody has written.

        Raises:
            NotFoundError: it is there, as on a web server, or at a proxy that wants a login first.
        """
        if not is_empty or self._is_store:
            return
        try:
            obstore.get(self._store, NEVER_WRITTEN)
        except FileNotFoundError:
            self._is_store = True
        except BaseError:  # this account may only list, or the network is at fault: the next request says it
            return
        else:
            raise NotFoundError(
                f"store {self._uri}: what answers is no such store: it has a key that nobody has written; correct "
                "store.endpoint or store.uri, or log in at the proxy"
            )

    def _to_error(self, error: BaseException) -> Exception:
        verdict, cause = of_request(error)
        return verdict.to_error(where=self._uri, cause=cause)


def _open(
    config: StoreSection, *, scheme: str, endpoint: str | None, environ: Mapping[str, str], options: dict[str, Any]
) -> Any:
    """The bucket of the URI; said so explicitly that no variable of the environment can say otherwise."""
    if scheme != "s3":
        options |= {"base_url" if scheme == "gs" else "endpoint": endpoint} if endpoint else {}
        options |= _azure_options(config, environ) if scheme == "az" else {}
        return from_url(config.uri, **options)
    bucket, _, prefix = config.uri.removeprefix("s3://").partition("/")
    is_path_style = config.path_style if config.path_style is not None else endpoint is not None
    if endpoint and not is_path_style:
        endpoint = _with_bucket_in_host(endpoint, bucket)
    options |= ambient.s3_options(bucket, environ, endpoint=endpoint, region=config.region)
    return S3Store(bucket, prefix=prefix.strip("/") or None, virtual_hosted_style_request=not is_path_style, **options)


def _azure_options(config: StoreSection, environ: Mapping[str, str]) -> dict[str, Any]:
    """The account of `az://`, and where a pod of AKS changes its token for one of the store."""
    authority = environ.get("AZURE_AUTHORITY_HOST", "").rstrip("/")  # AKS ends it in /, and obstore adds another one
    options: dict[str, Any] = {"use_fabric_endpoint": False}
    options |= {"account_name": config.account_name} if config.account_name else {}
    return options | ({"authority_host": authority} if authority else {})


def _with_bucket_in_host(endpoint: str, bucket: str) -> str:
    """Obstore takes an endpoint without path style as it is: the bucket would be left out of the address."""
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"
