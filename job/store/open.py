"""Opens the store that a URI names, and folders that may be one."""

from collections.abc import Callable, Mapping
from pathlib import Path

from job.config import StoreSection
from job.errors import ConfigError
from job.store.backend import Backend
from job.store.store import Store, Traffic
from job.uris import check_store_uri, has_scheme, parse_folder, parse_path, shown, to_store_uri


def open_store(
    config: StoreSection, *, environ: Mapping[str, str], uri: str | None = None, traffic: Traffic | None = None
) -> Store:
    """Open the configured store, or the one at `uri` with the settings that fit it, without a request to it.

    Args:
        uri: `file:`, `s3://`, `gs://` or `az://`, or a folder.
        traffic: counts the requests that follow.

    Raises:
        ConfigError: a URI that cannot be one.
        AccessDeniedError: no credentials under the provider's environment names.
    """
    if uri is not None:
        config = _config_for(config, to_store_uri(uri))
    try:
        check_store_uri(config.uri)
        uri, backend = _make_backend(config, environ=environ)
    except ValueError as error:
        raise ConfigError(f"store.uri: {error}, received {shown(config.uri)}") from error
    return Store(backend, uri=uri, deadline_seconds=config.deadline_seconds, traffic=traffic)


def _config_for(config: StoreSection, uri: str) -> StoreSection:
    """The settings for another place: a server and its region are those of one scheme, `s3:` where the store is a folder."""
    own, other = config.uri.partition(":")[0], uri.partition(":")[0]
    if other == own or (own == "file" and other == "s3"):
        return config.model_copy(update={"uri": uri})
    return config.model_copy(update={"uri": uri, "endpoint": None, "region": None, "path_style": None})


def _make_backend(config: StoreSection, *, environ: Mapping[str, str]) -> tuple[str, Backend]:
    """The URI as messages have it, and what answers to it."""
    if config.uri.startswith("file:"):
        from job.store.folder import FolderBackend

        folder = parse_folder(config.uri)
        return f"file:{folder}", FolderBackend(folder)
    from job.store.cloud import CloudBackend

    return config.uri, CloudBackend(config, environ=environ)


def folder_opener(config: StoreSection, *, environ: Mapping[str, str]) -> Callable[[str], Store | Path]:
    """Opens a place that may be a local folder, or a store with the settings of `config`."""

    def open_folder(uri: str) -> Store | Path:
        return open_store(config, environ=environ, uri=uri) if has_scheme(uri) else parse_path(uri)

    return open_folder
