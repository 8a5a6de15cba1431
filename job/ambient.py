"""What dependencies read from the environment and from files in the home folder, and what this program does about each.

`TABLE` is the list, made from the dependencies' sources; docs/environment.md shows it. Settings and credentials are not in it.
"""

import contextlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from job.errors import ConfigError
from job.masking import is_secret_name
from job.uris import check_url, shown, without_credentials

OWN_VARIABLES = frozenset({"MNIST_TEST_DATA", "MNIST_DIR"})
"""They start like settings and are none: for `scripts/test` and `scripts/kind`."""

_FPMATH_MODES = "TF_SET_ONEDNN_FPMATH_MODE ONEDNN_DEFAULT_FPMATH_MODE DNNL_DEFAULT_FPMATH_MODE"

_COMPUTING = (
    "TensorFlow",
    "TensorFlow, XLA, oneDNN",
    "cuBLAS, cuDNN",
    "CUDA, NCCL",
    "NumPy, OpenBLAS, OpenMP",
    "the C library",
)

Treatment = Literal["set", "removed", "default", "recorded", "recorded, bits", "refused", "for the store", "no effect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambient:
    """Variables, or a file, that something reads.

    Attributes:
        names: separated by blanks; `TF_*` stands for all that start so and have no row of their own.
        why: what it would change, and what to use instead.
        value: what `set` and `default` set.
    """

    names: str
    read_by: str
    treatment: Treatment
    why: str
    value: str = ""


TABLE = (
    Ambient(
        names="KERAS_BACKEND",
        read_by="Keras",
        treatment="set",
        why="another backend cannot train here; `tensorflow`, whatever keras.json says",
        value="tensorflow",
    ),
    Ambient(
        names="$KERAS_HOME/keras.json ~/.keras/keras.json /tmp/.keras/keras.json",
        read_by="Keras",
        treatment="refused",
        why="`floatx`, `epsilon` and `image_data_format` must be Keras' defaults: others make another result of one digest",
    ),
    Ambient(
        names="KERAS_MAX_EPOCHS KERAS_MAX_STEPS_PER_EPOCH KERAS_NNX_ENABLED KERAS_TORCH_DEVICE",
        read_by="Keras",
        treatment="removed",
        why="they cut `fit` and `evaluate` of an own model short, or are of other backends",
    ),
    Ambient(
        names="TF2_BEHAVIOR TF_USE_LEGACY_KERAS TF_ENABLE_CONTROL_FLOW_V2 TF_ENABLE_COND_V2 TF_ENABLE_WHILE_V2 "
        "TF_ENABLE_TENSOR_ARRAY_V2 SKIP_DISABLE_TF2",
        read_by="TensorFlow, etils",
        treatment="removed",
        why="they choose TensorFlow 1 or Keras 2",
    ),
    Ambient(
        names="TF_FUNCTION_JIT_COMPILE_DEFAULT TF_JIT_COMPILE_REWRITE",
        read_by="TensorFlow",
        treatment="removed",
        why="`train.compile` says what XLA compiles",
    ),
    Ambient(
        names="TF_NUM_INTRAOP_THREADS TF_NUM_INTEROP_THREADS",
        read_by="TensorFlow",
        treatment="removed",
        why="`cluster.intra_op_threads` and `cluster.inter_op_threads` say how many",
    ),
    Ambient(
        names=_FPMATH_MODES,
        read_by="TensorFlow, oneDNN",
        treatment="refused",
        why="the arithmetic would be another one than `train.precision` says; use that",
    ),
    Ambient(names="TF_CONFIG", read_by="TensorFlow", treatment="set", why="read with `cluster.workers`, else removed"),
    Ambient(
        names="TF_ENABLE_ONEDNN_OPTS",
        read_by="TensorFlow",
        treatment="default",
        why="1 on x86: without it the bits depend on the number of threads; another value is recorded",
        value="1",
    ),
    Ambient(
        names="TF_CPP_MIN_LOG_LEVEL",
        read_by="TensorFlow",
        treatment="default",
        why="1: what TensorFlow says on stderr: warnings and errors",
        value="1",
    ),
    Ambient(
        names="TF_CPP_* TF_DUMP_* TF_GPU_ALLOCATOR TF_FORCE_GPU_ALLOW_GROWTH TF_FORCE_UNIFIED_MEMORY TF_GPU_THREAD_MODE "
        "TF_GPU_THREAD_COUNT TF_GPU_HOST_MEM_LIMIT_IN_MB TF_PER_DEVICE_MEMORY_LIMIT_MB TF_DISABLE_PROFILING",
        read_by="TensorFlow",
        treatment="recorded",
        why="logs, memory and threads",
    ),
    Ambient(
        names="TF_VAR_* TF_CLI_* TF_TOKEN_* TF_REGISTRY_* TF_HTTP_* TF_STATE_* TF_CLOUD_* TF_ENCRYPTION TF_REATTACH_PROVIDERS "
        "TF_APPEND_USER_AGENT TF_ADDRESS TF_USERNAME TF_PASSWORD TF_DATA_DIR TF_INPUT TF_WORKSPACE TF_IN_AUTOMATION TF_LOG "
        "TF_LOG_PATH TF_LOG_CORE TF_LOG_PROVIDER TF_PLUGIN_CACHE_DIR",
        read_by="Terraform, OpenTofu",
        treatment="no effect",
        why="they only look like TensorFlow's, may hold secrets, and are recorded nowhere",
    ),
    Ambient(
        names="TF_* XLA_* TENSORFLOW_* PJRT_* MLIR_* ONEDNN_* DNNL_* EIGEN_*",
        read_by="TensorFlow, XLA, oneDNN",
        treatment="recorded, bits",
        why="which kernels run, such as XLA_FLAGS, TF_XLA_FLAGS, TF_DETERMINISTIC_OPS, ONEDNN_MAX_CPU_ISA",
    ),
    Ambient(
        names="NVIDIA_TF32_OVERRIDE CUBLAS_* CUBLASLT_* CUDNN_*",
        read_by="cuBLAS, cuDNN",
        treatment="recorded, bits",
        why="which kernels run on a GPU",
    ),
    Ambient(
        names="CUDA_* NVIDIA_* NCCL_*",
        read_by="CUDA, NCCL",
        treatment="recorded",
        why="which GPUs are seen (`cluster.expected_gpus` checks it), and how they talk",
    ),
    Ambient(
        names="OMP_* KMP_* GOMP_* MKL_* OPENBLAS_* GOTO_NUM_THREADS NPY_* NUMPY_*",
        read_by="NumPy, OpenBLAS, OpenMP",
        treatment="recorded",
        why="speed outside of the training step",
    ),
    Ambient(
        names="LD_PRELOAD GLIBC_TUNABLES",
        read_by="the C library",
        treatment="recorded, bits",
        why="which functions of the mathematics library run",
    ),
    Ambient(
        names="LD_LIBRARY_PATH MALLOC_*",
        read_by="the C library",
        treatment="recorded",
        why="which libraries, and memory",
    ),
    Ambient(
        names="PYTHONHASHSEED PYTHONOPTIMIZE PYTHONPATH PYTHONHOME PYTHONWARNINGS PYTHONMALLOC",
        read_by="Python",
        treatment="recorded",
        why="order in sets of own code, assertions, and where code comes from; the code itself is recorded by digest",
    ),
    Ambient(
        names="PROMETHEUS_MULTIPROC_DIR prometheus_multiproc_dir",
        read_by="prometheus_client",
        treatment="removed",
        why="numbers of other processes would be mixed into the metrics",
    ),
    Ambient(
        names="TFDS_DATA_DIR TFDS_RETRY_TRIES TFDS_RETRY_INITIAL_DELAY TFDS_RETRY_DELAY_MULTIPLIER TFDS_RETRY_NOISE "
        "TFDS_RETRY_MSG_SUBSTRINGS EPATH_USE_TF",
        read_by="tensorflow-datasets, etils",
        treatment="removed",
        why="`data.cache_dir` says where prepared data is",
    ),
    Ambient(
        names="TFDS_CACHE_DIR NO_GCE_CHECK GCS_* CLOUDSDK_CONFIG",
        read_by="tensorflow-datasets, TensorFlow",
        treatment="no effect",
        why="only for community data sets and `gs://` paths opened by TensorFlow, which this program does not do",
    ),
    Ambient(
        names="HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy",
        read_by="obstore, requests, urllib",
        treatment="recorded",
        why="the way to stores, downloads and the Pushgateway, without passwords",
    ),
    Ambient(
        names="SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE",
        read_by="OpenSSL, obstore, requests",
        treatment="recorded",
        why="which servers are trusted",
    ),
    Ambient(
        names="AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL AWS_REGION AWS_DEFAULT_REGION",
        read_by="obstore",
        treatment="recorded",
        why="for `s3://`, in this order, where `store.endpoint` and `store.region` are not set",
    ),
    Ambient(
        names="AWS_ENDPOINT",
        read_by="obstore",
        treatment="refused",
        why="with `s3://` and no `store.endpoint`: it would lead to another bucket; use `store.endpoint`",
    ),
    Ambient(
        names="AWS_BUCKET AWS_BUCKET_NAME AWS_VIRTUAL_HOSTED_STYLE_REQUEST AWS_S3_EXPRESS AWS_CONDITIONAL_PUT "
        "AWS_COPY_IF_NOT_EXISTS AWS_ALLOW_HTTP AWS_TIMEOUT AWS_CONNECT_TIMEOUT AWS_PROXY_URL AWS_PROXY_EXCLUDES "
        "AWS_ALLOW_INVALID_CERTIFICATES AWS_USER_AGENT",
        read_by="obstore",
        treatment="for the store",
        why="said explicitly from `store.*`, so that they have no effect; S3 Express is known by the bucket's `--x-s3`",
    ),
    Ambient(
        names="AWS_SERVER_SIDE_ENCRYPTION AWS_SSE_KMS_KEY_ID AWS_SSE_BUCKET_KEY_ENABLED AWS_REQUEST_PAYER AWS_UNSIGNED_PAYLOAD "
        "AWS_CHECKSUM_ALGORITHM AWS_DISABLE_TAGGING AWS_DISABLE_BULK_DELETE",
        read_by="obstore",
        treatment="recorded",
        why="how requests to `s3://` are made, not where to",
    ),
    Ambient(
        names="GOOGLE_BASE_URL SERVICE_ACCOUNT",
        read_by="obstore",
        treatment="refused",
        why="with `gs://`: another server or other credentials; use `store.endpoint` or GOOGLE_SERVICE_ACCOUNT",
    ),
    Ambient(
        names="GOOGLE_BUCKET GOOGLE_BUCKET_NAME",
        read_by="obstore",
        treatment="for the store",
        why="the bucket of the URI is said explicitly",
    ),
    Ambient(
        names="GCE_METADATA_HOST GCE_METADATA_ROOT GCE_METADATA_IP",
        read_by="obstore, this program",
        treatment="no effect",
        why="on results: who is asked for a token of `gs://` where no variable holds credentials; else Google's own server",
    ),
    Ambient(
        names="AZURE_ENDPOINT AZURE_STORAGE_ENDPOINT",
        read_by="obstore",
        treatment="refused",
        why="with `az://` and no `store.endpoint`: another server; use `store.endpoint`",
    ),
    Ambient(
        names="AZURE_CONTAINER_NAME AZURE_USE_FABRIC_ENDPOINT",
        read_by="obstore",
        treatment="for the store",
        why="the container of the URI is said explicitly, and Azure's Blob service",
    ),
    Ambient(
        names="AZURE_STORAGE_ACCOUNT_NAME AZURE_STORAGE_USE_EMULATOR AZURITE_BLOB_STORAGE_URL",
        read_by="obstore",
        treatment="recorded",
        why="the account of `az://` without `store.account_name`; the emulator is refused beside `store.endpoint`",
    ),
    Ambient(
        names="XDG_CACHE_HOME HOME TMPDIR",
        read_by="this program, Python",
        treatment="recorded",
        why="where `data.cache_dir` is by default, `~` and temporary files",
    ),
    Ambient(
        names="TERM COLUMNS LINES NO_COLOR FORCE_COLOR COLORTERM LANG LC_ALL TZ",
        read_by="rich, Python",
        treatment="no effect",
        why="on results; they change what a terminal shows",
    ),
    Ambient(
        names="~/.aws/config ~/.aws/credentials ~/.netrc ~/.config/pip",
        read_by="nobody here",
        treatment="no effect",
        why="AWS_PROFILE neither; requests reads ~/.netrc for the host of a download",
    ),
    Ambient(
        names="KUBECONFIG ~/.kube/config",
        read_by="mnist-k8s",
        treatment="no effect",
        why="which cluster, as kubectl does it",
    ),
)

_KERAS_DEFAULTS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
_MOVES_THE_STORE = {
    "s3": ("AWS_ENDPOINT",),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
}
_MAX_CHARACTERS = 500


def take_over(environ: MutableMapping[str, str]) -> None:
    """Set and remove what is ours, before any library is imported that reads it."""
    for row in TABLE:
        names = row.names.split()
        if row.treatment == "removed":
            for name in names:
                environ.pop(name, None)
        elif row.treatment == "set" and row.value:
            environ.update(dict.fromkeys(names, row.value))
        elif row.treatment == "default" and _is_for_this_machine(names[0]):
            environ.setdefault(names[0], row.value)


def check(environ: Mapping[str, str]) -> None:
    """Refuse what would make another result under the same digest; for commands that compute with a model.

    Raises:
        ConfigError: names the variable or the file.
    """
    for name in _FPMATH_MODES.split():
        if environ.get(name, "").upper() not in ("", "STRICT", "FP32"):
            raise ConfigError(
                f"{name}: the arithmetic must be that of train.precision, received {environ[name][:80]!r}; unset it, and use "
                "train.precision"
            )
    if re.search(r"--tf_xla_auto_jit=(?!0\b|-1\b)", flags := environ.get("TF_XLA_FLAGS", "")):
        raise ConfigError(
            f"TF_XLA_FLAGS: train.compile says what XLA compiles, received {flags[:80]!r}; use train.compile"
        )
    _check_keras_file(_keras_folder(environ) / "keras.json")


def _keras_folder(environ: Mapping[str, str]) -> Path:
    """As Keras finds it."""
    if "KERAS_HOME" in environ:
        return Path(os.path.expanduser(environ["KERAS_HOME"]))  # noqa: PTH111 - that of Path fails without a home
    home = os.path.expanduser("~")  # noqa: PTH111
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"  # noqa: S108 - Keras' own choice


def _check_keras_file(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras goes on with its defaults
        return
    for name, default in _KERAS_DEFAULTS.items():
        received = content.get(name, default) if isinstance(content, dict) else content
        if received != default or type(received) is not type(default):
            raise ConfigError(
                f"{path}: {name} must be Keras' default {json.dumps(default)}: with another one, the same settings would have "
                f"another result; received {json.dumps(received)[:80]}; correct the file, or name another folder in KERAS_HOME"
            )


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Let all temporary files of this process lie in one folder in TMPDIR, which is gone afterwards.

    TensorFlow leaves a file there for each function that it traces. A killed process leaves the folder. Where none can be made,
    the files lie in TMPDIR itself: who needs one says what is wrong.
    """
    before = tempfile.tempdir
    try:
        folder = tempfile.TemporaryDirectory(prefix=_own_prefix(), ignore_cleanup_errors=True)
    except OSError:
        yield
        return
    with folder as name:
        tempfile.tempdir = name
        try:
            yield
        finally:
            tempfile.tempdir = before


def temporary_root() -> Path:
    """The folder that TMPDIR says, for what outlives this process and for messages."""
    folder = Path(tempfile.gettempdir())
    return folder.parent if folder.name.startswith(_own_prefix()) else folder


def _own_prefix() -> str:
    return f"mnist-job-{os.getpid()}-"


def home_folder() -> Path | None:
    """The home folder of this user; None for a user id without HOME and without an entry in /etc/passwd."""
    home = os.path.expanduser("~")  # noqa: PTH111
    return Path(home) if os.path.isabs(home) else None  # noqa: PTH117


def check_store(scheme: str, environ: Mapping[str, str], *, has_endpoint: bool) -> None:
    """Refuse what would lead a store elsewhere than its settings say, and cannot be overridden.

    Args:
        scheme: `s3`, `gs` or `az`.
        has_endpoint: whether `store.endpoint` is set, which wins over the variables of that name.

    Raises:
        ConfigError: names the variable.
    """
    for name, value in environ.items():
        if value and not has_endpoint and name.upper() in _MOVES_THE_STORE[scheme]:
            raise ConfigError(
                f"{name}: obstore would send the objects of {scheme}:// to it, received {shown(value)}; unset it, "
                "and use store.endpoint"
            )
    if scheme == "gs" and environ.get("SERVICE_ACCOUNT"):
        raise ConfigError(
            "SERVICE_ACCOUNT: obstore would take it for a credentials file; unset it, and use GOOGLE_SERVICE_ACCOUNT"
        )
    emulator = environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true", "on", "yes", "y")
    if scheme == "az" and emulator and has_endpoint:
        raise ConfigError("AZURE_STORAGE_USE_EMULATOR: with it store.endpoint would not be used; drop one of the two")


def s3_options(bucket: str, environ: Mapping[str, str], *, endpoint: str | None, region: str | None) -> dict[str, str]:
    """What obstore is told explicitly of where `s3://` is, so that no variable can say otherwise."""
    endpoint = endpoint or s3_endpoint(environ)
    region = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    is_express = endpoint is None and bucket.endswith("--x-s3")
    options = {"region": region, "s3_express": str(is_express).lower(), "conditional_put": "etag"}
    return options | ({"endpoint": endpoint, "aws_endpoint_url_s3": endpoint} if endpoint else {})


def s3_endpoint(environ: Mapping[str, str]) -> str | None:
    """The server of `s3://` without `store.endpoint`, by the names and in the order of AWS's own programs.

    Raises:
        ConfigError: names the variable that holds no address of a server.
    """
    name = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if environ.get(name)), None)
    if name is None:
        return None
    try:
        return check_url(environ[name])
    except ValueError as error:
        raise ConfigError(f"{name}: {error}, received {shown(environ[name])}") from error


def recorded(environ: Mapping[str, str]) -> dict[str, str]:
    """What is set of what is only recorded: name -> value, for attempt.json."""
    found = {}
    for name, value in sorted(environ.items()):
        row = None if is_secret_name(name) else _row_of(name)  # NVIDIA_API_KEY: a family of names takes it in
        is_other = row is not None and row.treatment == "default" and value != row.value
        if row is not None and (row.treatment.startswith("recorded") or is_other):
            found[name] = without_credentials(value.encode(errors="backslashreplace").decode())[:_MAX_CHARACTERS]
    return found


def for_computing(environ: Mapping[str, str]) -> dict[str, str]:
    """What TensorFlow, its libraries and the C library are told by the environment: for a process that only computes."""
    found = {}
    for name, value in environ.items():
        row = None if is_secret_name(name) else _row_of(name)
        if row and row.read_by in _COMPUTING and row.treatment in ("recorded", "recorded, bits", "default"):
            found[name] = value
    return found


def decides_bits(name: str) -> bool:
    """Whether a variable that is recorded may change the bits of a step."""
    row = _row_of(name)
    return row is not None and (row.treatment == "recorded, bits" or row.names == "TF_ENABLE_ONEDNN_OPTS")


def _row_of(name: str) -> Ambient | None:
    """The row that names a variable, else the first whose beginning it has."""
    exact = next((row for row in TABLE if name in row.names.split()), None)
    return exact or next(
        (row for row in TABLE for start in row.names.split() if start.endswith("*") and name.startswith(start[:-1])),
        None,
    )


def _is_for_this_machine(name: str) -> bool:
    return name != "TF_ENABLE_ONEDNN_OPTS" or platform.machine() in ("x86_64", "AMD64")
