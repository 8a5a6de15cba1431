"""The one config schema: every setting, its default, its check and a sentence about it.

Does not know where values come from (`config_sources.py`) nor facts about the machine, such as visible GPUs or the size of a
dataset; checks that need those are made where they are known.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from job import strict_yaml, uris
from job.contract import RUN_ID_MAX_CHARACTERS, RUN_ID_PATTERN, is_run_id

TFDS_DATASETS = ("mnist", "fashion_mnist", "kmnist", "emnist/digits")
SOURCES = {"tfds": "job.datasets.tfds", "idx": "job.datasets.idx", "digits": "job.datasets.digits"}
"""The built-in sources of data, each with its module, which `datasets/load.py` imports when it is chosen."""
MAX_DATA_BYTES = 4 * 2**30
"""Of memory that the examples of a file may take, unless the user says otherwise; EMNIST takes 1 GB."""
_FUNCTION_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
_NO_FUNCTION_PATTERN = r":__\w*__$"
"""A name such as `__import__`, which every module has and nobody wrote."""
_DATASET_PATTERN = r"[A-Za-z0-9]+([-_./:][A-Za-z0-9]+)*"

_ADDRESS_PATTERN = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)?$"
"""What the chart's schema can say of an IP address; an empty text is none there."""
_MAPPED_PATTERN = r"^[0:]*:[fF]{4}:"
"""An IPv4 address in the form of IPv6, which Linux binds to no socket that is for IPv6 alone."""
_ADDRESS_SCHEMA: dict[str, JsonValue] = {
    "pattern": _ADDRESS_PATTERN,
    "not": {"type": "string", "pattern": _MAPPED_PATTERN},
}

_ANY_LETTER = "[\\w\u00aa-\u1fff\u3040-\ud7ff]"
"""Of a name. Helm reads the schema with Go, where `\\w` is ASCII alone."""
_FUNCTION_IN_SCHEMA = _FUNCTION_PATTERN.replace(r"\w", _ANY_LETTER)
_FUNCTION_SCHEMA: dict[str, JsonValue] = {
    "pattern": f"^{_FUNCTION_IN_SCHEMA}$",
    "not": {"type": "string", "pattern": _NO_FUNCTION_PATTERN},
}
_SOURCE_SCHEMA = _FUNCTION_SCHEMA | {"pattern": f"^({'|'.join(SOURCES)}|{_FUNCTION_IN_SCHEMA})$"}
_REFUSED_URI: JsonValue = {"type": "string", "pattern": uris.REFUSED_PATTERN}
_RUN_ID_SCHEMA: dict[str, JsonValue] = {"pattern": f"^$|{RUN_ID_PATTERN}", "maxLength": RUN_ID_MAX_CHARACTERS}


def _split_list(value: object) -> object:
    """Accept `512,256` and `[512, 256]` from flags and variables, beside a real list from YAML."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("[") != text.endswith("]"):
        raise ValueError("must be a list such as 512,256 or [512, 256]")
    items = text.removeprefix("[").removesuffix("]").strip()
    return [part.strip() for part in items.split(",")] if items else []


def _is_function(text: str) -> bool:
    return bool(re.fullmatch(_FUNCTION_PATTERN, text)) and not re.search(_NO_FUNCTION_PATTERN, text)


def _check_function(value: str) -> str:
    if not _is_function(value):
        raise ValueError("must be package.module:function")
    return value


def _check_address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value.replace("%", " "))  # no interface after it, which may hold anything
    except ValueError as error:
        raise ValueError("must be an IPv4 or IPv6 address as numbers, such as 127.0.0.1 or ::1") from error
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if mapped:
        raise ValueError(f"must not be an IPv4 address in the form of IPv6; write {mapped}")
    return value


def _parse_path(value: object) -> object:
    return uris.parse_path(str(value)) if isinstance(value, (str, Path)) else value


def _parse_mapping(value: object) -> object:
    """Accept `{width: 16}` (YAML, so JSON too) from flags and variables, beside a real mapping from a file."""
    if not isinstance(value, str):
        return value
    try:
        return strict_yaml.parse_values(value)
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None)
        raise ValueError(f"must be a mapping such as {{width: 16}}{f' ({reason})' if reason else ''}") from error


def _check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Arguments are recorded as JSON: what would not come back equal is refused."""
    try:
        is_equal = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        is_equal = False
    if not is_equal or not all(key.isidentifier() for key in value):
        raise ValueError("must map names to JSON values: numbers, texts, true, false, null, lists and mappings")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=4096)]
"""TensorFlow starts all of them at once, each with a stack."""
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400 * 30, allow_inf_nan=False)]
Names = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(top_[1-9][0-9]{0,2}_accuracy|auc|f1_macro)$")], ...],
    BeforeValidator(_split_list),
]
Arguments = Annotated[
    dict[str, Any],
    BeforeValidator(_parse_mapping),
    AfterValidator(_check_json),
    Field(json_schema_extra={"propertyNames": {"pattern": f"^[A-Za-z_\u00aa-\u1fff\u3040-\ud7ff]{_ANY_LETTER}*$"}}),
]
Function = Annotated[str, AfterValidator(_check_function), Field(json_schema_extra=_FUNCTION_SCHEMA)]
LocalPath = Annotated[Path, BeforeValidator(_parse_path), Field(json_schema_extra={"pattern": uris.PATH_PATTERN})]
"""With the home folder in the place of `~`."""
Place = Annotated[
    str,
    AfterValidator(uris.check_place),
    Field(json_schema_extra={"pattern": uris.PLACE_PATTERN, "not": _REFUSED_URI}),
]
Url = Annotated[str, AfterValidator(uris.check_url), Field(json_schema_extra={"pattern": uris.URL_PATTERN})]
IpAddress = Annotated[str, AfterValidator(_check_address), Field(json_schema_extra=_ADDRESS_SCHEMA)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(_split_list)]


class Section(BaseModel):
    """One group of settings: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSection(Section):
    """What the run is called and what makes it repeatable."""

    id: Annotated[str, Field(json_schema_extra=_RUN_ID_SCHEMA)] | None = Field(
        None, description="name of the run; generated from what decides the result when absent"
    )
    suffix: str = Field("", max_length=63, pattern=r"^[A-Za-z0-9._-]*$", description="another value repeats a run")
    seed: Annotated[int, Field(ge=0, lt=2**32)] | Literal["random"] = Field(
        1337, description="seed of weights, order and dropout; random = derived from the run id, and recorded"
    )
    skip_if_unchanged: bool = Field(
        False, description="do nothing when the champion came from the same inputs and code"
    )

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str | None) -> str | None:
        if value is not None and not is_run_id(value):
            raise ValueError(
                "must be a DNS-1123 subdomain: lower-case letters, digits, '-' and '.', starting and ending "
                f"with a letter or digit, at most {RUN_ID_MAX_CHARACTERS} characters"
            )
        return value


class DataSection(Section):
    """Where the examples come from."""

    source: str = Field(
        "tfds",
        description=f"{', '.join(SOURCES)}, or package.module:function for your own data",
        json_schema_extra=_SOURCE_SCHEMA,
    )
    uri: Place | None = Field(
        None, description="idx: folder or store URI with the four IDX files; tfds: folder with its downloads"
    )
    dataset: str = Field(
        "mnist",
        max_length=100,
        description="mnist, fashion_mnist, kmnist or emnist/digits",
        json_schema_extra={"pattern": f"^{_DATASET_PATTERN}$"},
    )
    train_examples: PositiveInt | None = Field(None, description="use only this many training examples")
    test_examples: PositiveInt | None = Field(None, description="use only this many test examples")
    validation_fraction: float = Field(
        0.0, ge=0, le=0.9, allow_inf_nan=False, description="share of the training split that is kept for validation"
    )
    args: Arguments = Field({}, description="keyword arguments of your own source, such as {size: 64}")
    cache_dir: LocalPath | None = Field(None, description="where prepared data is kept; default ~/.cache/mnist-train")
    max_bytes: PositiveInt = Field(MAX_DATA_BYTES, description="idx: refuse files whose headers promise more memory")

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if value not in SOURCES and not _is_function(value):
            raise ValueError(f"must be {', '.join(SOURCES)} or package.module:function")
        return value

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, value: str) -> str:
        if not re.fullmatch(_DATASET_PATTERN, value):
            raise ValueError("must be letters and digits, joined by single '-', '_', '.', '/' or ':'")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.source == "idx" and self.uri is None:
            raise ValueError("uri must be set with source=idx: a folder or store URI that holds the four IDX files")
        if self.source in SOURCES and self.args:
            raise ValueError(
                f"args are read only by a source of your own, received source={self.source}; drop one of the two"
            )
        if self.source not in ("idx", "tfds") and self.uri is not None:
            raise ValueError(f"uri is read only with source idx or tfds, received {self.source}; drop one of the two")
        if self.source == "tfds" and self.uri is not None and uris.is_object_store(self.uri):
            raise ValueError(
                f"uri must be a folder of this machine with source=tfds, received {uris.shown(self.uri)}; "
                "source=idx reads the four IDX files from a store"
            )
        if self.source == "tfds" and self.dataset not in TFDS_DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(TFDS_DATASETS)} with source=tfds")
        return self

    @property
    def downloads_dir(self) -> Path | None:
        """The folder with the downloads that `source=tfds` takes instead of fetching them."""
        return uris.parse_path(self.uri) if self.source == "tfds" and self.uri is not None else None

    @property
    def name(self) -> str:
        """What the data is called in results: sources of other data never pass for MNIST."""
        if self.source in ("tfds", "idx"):
            return self.dataset
        is_named = self.source != "digits" and self.dataset != DataSection.model_fields["dataset"].default
        return self.dataset if is_named else self.source.replace(":", ".")


REFERENCE_ONLY = ("hidden_units", "activation", "dropout")
"""Settings that the reference model has and a model of your own has not."""


class ModelSection(Section):
    """What is trained."""

    build: Function | None = Field(
        None, description="package.module:function that returns your own Keras model; absent = the reference model"
    )
    hidden_units: Widths = Field((512, 512), max_length=64, description="width of each hidden layer")
    activation: Literal["sigmoid", "relu", "tanh", "gelu", "elu", "selu", "silu", "softplus", "leaky_relu"] = Field(
        "sigmoid", description="activation of the hidden layers"
    )
    dropout: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, description="rate after each hidden layer")
    args: Arguments = Field({}, description="keyword arguments of model.build, such as {width: 16}")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.build is None and self.args:
            raise ValueError("args are read only with model.build; drop one of the two")
        fields = type(self).model_fields
        ignored = [name for name in REFERENCE_ONLY if getattr(self, name) != fields[name].default]
        if self.build is not None and ignored:
            raise ValueError(f"{', '.join(ignored)}: only of the reference model, not of model.build; use args instead")
        return self


MAX_CUTS = 1000
"""Of schedule=step: each is an operation in the graph of a step."""


class TrainSection(Section):
    """How it is trained."""

    epochs: int = Field(20, ge=1, le=100_000, description="passes over the training split")
    global_batch_size: int = Field(128, ge=1, le=1_048_576, description="examples per update over all replicas")
    optimizer: Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lion"] = Field(
        "sgd", description="update rule of Keras (momentum and nesterov are SGD with 0.9)"
    )
    learning_rate: float = Field(0.01, gt=0, le=1e6, allow_inf_nan=False, description="step size of the optimizer")
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="decoupled weight decay; default: the optimizer's own (adamw 0.004, others none)"
    )
    clip_norm: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = Field(
        None, description="largest norm of all gradients together; default: not clipped"
    )
    schedule: Literal["constant", "cosine", "warmup-cosine", "step"] = Field(
        "constant", description="how the learning rate changes over the run"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises from 0")
    step_epochs: PositiveInt | None = Field(None, description="schedule=step: epochs between two cuts")
    step_factor: float = Field(0.1, gt=0, lt=1, allow_inf_nan=False, description="schedule=step: factor of each cut")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, allow_inf_nan=False, description="share of each label spread over all classes in the loss"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: each class counts alike in the loss, however many examples it has"
    )
    metrics: Names = Field((), max_length=8, description="more metrics: top_K_accuracy (K = 2, 3, ...), auc, f1_macro")
    evaluate_every: PositiveInt = Field(
        1, description="epochs between two evaluations; the last epoch is always evaluated"
    )
    monitor: Literal["val_loss", "val_accuracy"] = Field(
        "val_loss", description="what early stopping and keep=best look at, on the validation split"
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after so many evaluations without a better one; default: never"
    )
    early_stopping_min_delta: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="only what is better by more than this counts as better"
    )
    keep: Literal["last", "best"] = Field("last", description="weights of which epoch become the result")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="type of the arithmetic; weights: float32")
    compile: Literal["auto", "xla", "graph"] = Field(
        "auto", description="auto: xla for dense layers with one replica and two or more cores; else graph"
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule == "warmup-cosine" and not self.warmup_steps:
            raise ValueError("warmup_steps must be at least 1 with schedule=warmup-cosine")
        if self.schedule == "cosine" and self.warmup_steps:
            raise ValueError("warmup_steps must be 0 with schedule=cosine; use schedule=warmup-cosine")
        if (self.schedule == "step") != (self.step_epochs is not None):
            raise ValueError("step_epochs and schedule=step go together; set both or neither")
        if self.step_epochs is None and self.step_factor != type(self).model_fields["step_factor"].default:
            raise ValueError(
                f"step_factor is read only with schedule=step, received {self.schedule}; drop one of the two"
            )
        if self.step_epochs is not None:
            self._check_cuts(self.step_epochs)
        return self

    def _check_cuts(self, step_epochs: int) -> None:
        num_cuts = (self.epochs - 1) // step_epochs
        if not 1 <= num_cuts <= MAX_CUTS:
            raise ValueError(
                f"step_epochs must give 1 to {MAX_CUTS} cuts within the {self.epochs} epochs, received {step_epochs}: that is "
                f"{num_cuts}; change step_epochs or epochs"
            )

    @model_validator(mode="after")
    def _check_early_stopping(self) -> Self:
        if self.early_stopping_min_delta and self.early_stopping_patience is None:
            raise ValueError("early_stopping_min_delta is read only with early_stopping_patience; set both or neither")
        return self

    @property
    def needs_validation(self) -> bool:
        """Whether a validation split decides when training ends, or which epoch is kept."""
        return self.early_stopping_patience is not None or self.keep == "best"


class ClusterSection(Section):
    """The devices to train on."""

    workers: int = Field(
        1, ge=1, le=64, description="processes (pods) that train one model together; see docs/workers.md"
    )
    start_timeout_seconds: Seconds = Field(
        900.0, description="how long workers wait for each other before the first step"
    )
    peer_timeout_seconds: Annotated[float, Field(ge=10, le=3600)] = Field(
        30.0, description="a worker that is silent for so long is lost"
    )
    expected_gpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="stop with 66 unless each worker sees so many"
    )
    cpu_replicas: int = Field(1, ge=1, le=64, description="replicas of each worker on its CPU, when it has no GPUs")
    intra_op_threads: Threads | None = Field(None, description="threads of one operation; default: the CPU limit")
    inter_op_threads: Threads | None = Field(None, description="operations at a time; default: the CPU limit")


class CheckpointSection(Section):
    """Resumable state."""

    interval_seconds: Seconds = Field(30.0, description="time between checkpoints")
    keep: int = Field(2, ge=1, le=1000, description="how many of the newest stay")
    final_save_seconds: Seconds = Field(20.0, description="how long the save after SIGTERM may take")


class StoreSection(Section):
    """The object store. Credentials are never fields: they come under the providers' own environment names."""

    uri: Annotated[str, AfterValidator(uris.check_store_uri)] = Field(
        "file:./out",
        description="file:, s3://, gs:// or az:// with an optional prefix",
        json_schema_extra={"pattern": uris.STORE_PATTERN, "not": _REFUSED_URI},
    )
    endpoint: Url | None = Field(None, description="URL of an S3-compatible server; absent = the provider's own")
    region: str | None = Field(None, description="region of the bucket, as the provider names it")
    account_name: str | None = Field(
        None, pattern="^[a-z0-9]{3,24}$", description="storage account of az://; default: AZURE_STORAGE_ACCOUNT_NAME"
    )
    path_style: bool | None = Field(
        None, description="bucket in the path, not the host name; default: with an endpoint"
    )
    timeout_seconds: Seconds = Field(30.0, description="limit of one request")
    deadline_seconds: Seconds = Field(120.0, description="limit of one operation with all its retries")


class PromotionSection(Section):
    """When a committed run becomes the champion."""

    model_name: str | None = Field(
        None, pattern=r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$", description="default: the dataset"
    )
    enabled: bool = Field(True, description="whether this run may become the champion")
    metric: str = Field(
        "accuracy",
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$",
        description="what is compared: accuracy, top_K_accuracy, auc, f1_macro, or one of your compiled model",
    )
    min_accuracy: Fraction = Field(0.0, description="refuse below this test accuracy")
    max_accuracy_drop: Fraction = Field(
        0.002, description="refuse below the anchor by more than this, when that is no chance"
    )
    min_class_recall: Fraction = Field(0.0, description="refuse when any class is recalled less often")
    significance: Fraction = Field(0.05, description="level of the tests against the champion and the anchor")
    refused_is_failure: bool = Field(False, description="exit 78 instead of 0 when the gate refuses")


class RetentionSection(Section):
    """What is kept in the store after a committed run."""

    keep_runs: int = Field(30, ge=1, description="newest committed runs of the model that stay")
    keep_versions: int = Field(10, ge=1, description="newest serving versions of the model that stay")


class ObserveSection(Section):
    """What people and machines see."""

    metrics_port: int = Field(9090, ge=0, le=65_535, description="port of /metrics; 0 = off")
    metrics_address: IpAddress | None = Field(
        None, description="address that /metrics is served on, such as 127.0.0.1; default: all of the machine"
    )
    pushgateway_url: Url | None = Field(None, description="where the outcome is pushed at exit")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else json")
    stall_timeout_seconds: Seconds = Field(
        300.0,
        description="no step or evaluated batch for so long: stacks to the log, exit 74; compiling: 4 times as long",
    )
    report: bool = Field(True, description="write report.html, and index.html of the model")
    tensorboard: bool = Field(False, description="write TensorBoard's event files beside the stored log")
    termination_log: LocalPath | None = Field(
        None, description="where the termination message goes; default /dev/termination-log where that exists"
    )


class Config(BaseModel):
    """All settings of one attempt. Build it with `load_config`, which knows the order of the sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    cluster: ClusterSection = ClusterSection()
    checkpoint: CheckpointSection = CheckpointSection()
    store: StoreSection = StoreSection()
    promotion: PromotionSection = PromotionSection()
    retention: RetentionSection = RetentionSection()
    observe: ObserveSection = ObserveSection()

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.train.needs_validation and not self.data.validation_fraction and self.data.source in SOURCES:
            raise ValueError(
                "train.early_stopping_patience and train.keep=best look at a validation split; set data.validation_fraction"
            )
        return self


def field_names() -> list[str]:
    """Every setting as `section.field`, in the order of the schema."""
    return [
        f"{section}.{field}"
        for section, info in Config.model_fields.items()
        for field in _section_class(info.annotation).model_fields
    ]


def default_values(schema: type[Config] = Config) -> Mapping[str, object]:
    """`section.field` -> its default, as plain JSON, in the order of the schema."""
    return {
        f"{section}.{field}": default
        for section, info in schema.model_fields.items()
        for field, default in _section_class(info.annotation).model_construct().model_dump(mode="json").items()
    }


def describe_fields() -> list[tuple[str, str, str]]:
    """(name, default, description) of every setting, for `--help` and the reference table."""
    rows = []
    for section, info in Config.model_fields.items():
        for field, leaf in _section_class(info.annotation).model_fields.items():
            rows.append((f"{section}.{field}", to_text(leaf.default), leaf.description or ""))
    return rows


def to_text(value: object) -> str:
    """A setting's value as it would be written in the YAML file."""
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return strict_yaml.dump(plain, is_flow=True).removesuffix("...\n").strip()


def _section_class(annotation: object) -> type[Section]:
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation
