"""What each record of a run must hold, whoever wrote it. Records of all versions pass: what was added later may be missing.

Not here, because nobody reads what is in them: attempt.json (COMMIT repeats it), claims and marks of retention (their names say
all). The registry's records are in `registry/champion.py` and `registry/rules.py`.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from job.contract import is_run_id
from job.errors import IntegrityError
from job.measures import is_measure
from job.records import show

_SHOWN_NAMES, _SHOWN_CHARACTERS = 8, 60
_MAX_KEY_BYTES, _MAX_FILE_NAME_BYTES = 1024, 255
"""Of a key in S3, and of a name in a folder."""


def _check_id(text: str) -> str:
    if not is_run_id(text):
        raise ValueError("must be the name of a run or an attempt")
    return text


def _check_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _check_key(text: str) -> str:
    """Such a name can be given to a file in any folder that is not nested very deep itself."""
    parts = [len(part.encode()) for part in text.split("/")]
    if max(parts) > _MAX_FILE_NAME_BYTES or len(text.encode()) > _MAX_KEY_BYTES or "\0" in text:
        raise ValueError(
            f"must have {_MAX_KEY_BYTES} bytes at most, {_MAX_FILE_NAME_BYTES} between two slashes, and no NUL"
        )
    return text


Id = Annotated[str, AfterValidator(_check_id)]
"""Of a run or an attempt: safe as one segment of a key."""
Time = Annotated[str, AfterValidator(_check_time)]
"""ISO 8601."""
Name = Annotated[str, Field(max_length=1000)]
Text = Annotated[str, Field(max_length=10_000)]
"""A reason."""
Digest = Annotated[str, Field(max_length=64)]
"""SHA-256 in hex; in old records also `None`, as text."""
Key = Annotated[str, AfterValidator(_check_key)]
Seconds = Annotated[float, Field(ge=-1e12, le=1e12)]
"""Some 30,000 years: the sum of all that a record holds is finite."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]


class Shape(BaseModel):
    """What one kind of record must hold. Nothing is converted, and numbers are finite. Keys that are not declared are let
    through: a newer version may have added them.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Shape)


def to_shape(shape: type[S], content: Mapping[str, Any], *, name: str) -> S:
    """What a record of this kind holds, with its types.

    Args:
        name: what the record should be, for the error, such as `store: runs/x/COMMIT.json is not the COMMIT of this run`.

    Raises:
        IntegrityError: a key is missing, or holds something else.
    """
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise IntegrityError(f"{name}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    """All keys that are missing, or the first value that is wrong."""
    faults = error.errors(include_url=False)
    missing = sorted(_place(fault["loc"]) for fault in faults if fault["type"] == "missing")
    if missing:
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        return f"it lacks {', '.join(missing[:_SHOWN_NAMES])}{more}"
    rule = re.sub(r"^(Value error, |Input |String |List )| or instance of \w+", "", faults[0]["msg"])
    where = f"its {_place(faults[0]['loc'])} " if faults[0]["loc"] else ""
    return f"{where}{rule}, received {show(faults[0]['input'])}"


def _place(parts: tuple[int | str, ...]) -> str:
    text = ".".join(map(str, parts))
    return text if text.isprintable() and len(text) <= _SHOWN_CHARACTERS else show(text)


class Closed(Shape):
    """The record that closes a run, in the place of its COMMIT."""

    run: str
    abandoned: Time
    by: str | None = None


class _File(Shape):
    key: Key
    num_bytes: Count
    sha256: Digest


class _Dataset(Shape):
    name: Name
    digest: Digest | None = None
    evaluation_digest: Digest | None = None


class Metrics(Shape):
    """`metrics` of a COMMIT; those of the user's own, named `test_*` too, are numbers."""

    model_config = ConfigDict(extra="allow")
    test_accuracy: Share
    test_loss: float | None = None
    test_examples: Count | None = None
    val_accuracy: Share | None = None
    val_loss: float | None = None
    val_examples: Count | None = None

    @model_validator(mode="after")
    def _check_more(self) -> "Metrics":
        for name, value in (self.model_extra or {}).items():
            if name.startswith("test_"):
                _check_metric(name, value)
        if self.val_loss is not None and None in (self.val_accuracy, self.val_examples):
            raise ValueError("must have val_accuracy and val_examples beside val_loss")
        return self


def _check_metric(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must have a number for each metric, and has {type(value).__name__} for {name[:40]!r}")
    if is_measure(name.removeprefix("test_")) and not 0 <= value <= 1:
        raise ValueError(f"must have 0 to 1 for {name}")


class _Train(Shape):
    epochs: Count | None = None
    keep: str = "last"
    metrics: list[str] = Field(default_factory=list)


class _Promotion(Shape):
    model_name: str | None = None


class _Config(Shape):
    """Settings, section by section."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]
    train: _Train = _Train()
    promotion: _Promotion = _Promotion()


class _Lineage(Shape):
    started: Time | None = None
    image: str = ""
    revision: str = ""
    version: str = ""
    python: str = ""
    software: dict[str, str] = Field(default_factory=dict)
    devices: list[str] = Field(default_factory=list)
    workers: int = Field(1, ge=1)
    packages: dict[str, str] = Field(default_factory=dict)
    machine: str = ""
    instruction_sets: list[str] = Field(default_factory=list)
    onednn_max_cpu_isa: str | None = None
    threads: dict[str, Count] = Field(default_factory=dict)
    compile: str = ""
    code: list[dict[str, Any]] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)


class _Counters(Shape):
    attempts: Count | None = None


class _Goodput(Shape):
    """Older versions took times from the calendar: a step back made them negative."""

    wall_seconds: Seconds | None = None
    down_seconds: Seconds = 0.0
    seconds: dict[str, Seconds] = Field(default_factory=dict)


class Commit(Shape):
    """COMMIT.json."""

    format: Literal[1] = 1
    run: str
    attempt: Id
    committed: Time | None = None
    result_digest: Digest
    weights_digest: Digest
    state_digest: Digest | None = None
    state_digest_by_position: Digest | None = None
    dataset: _Dataset
    metrics: Metrics
    files: list[_File]
    inputs: dict[str, Any] = Field(default_factory=dict)
    config: _Config = _Config()
    lineage: _Lineage = _Lineage()
    counters: _Counters = _Counters()
    goodput: _Goodput = _Goodput()
    best_epoch: Count | None = None
    stopped_epoch: Count | None = None

    @model_validator(mode="after")
    def _check_validation(self) -> "Commit":
        said = self.model_fields_set | {f"train.{name}" for name in self.config.train.model_fields_set}
        wanted = {"best_epoch", "stopped_epoch", "train.epochs", "train.keep"}
        if self.metrics.val_loss is not None and not wanted <= said:
            raise ValueError(f"metrics.val_loss goes with {', '.join(sorted(wanted))}")
        return self


class Run(Shape):
    """run.json."""

    format: Literal[1] = 1
    created: Time | None = None
    result_digest: str
    inputs: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class RunEnd(Shape):
    """The event `run.end` of a stored log."""

    time: Time
    outcome: Name
    code: Count
    seconds: Seconds = 0.0


class _Class(Shape):
    name: str
    num_examples: Count
    recall: Share
    precision: Share


class _Wrong(Shape):
    position: Count
    label: Count
    predicted: Count
    probability: Share


class _Test(Shape):
    classes: list[_Class]
    confusion: list[list[Count]]
    confusion_classes: list[Count] | None = None
    wrong: list[_Wrong]

    @model_validator(mode="after")
    def _check_numbers(self) -> "_Test":
        num_classes, num_rows = len(self.classes), len(self.confusion)
        rows = range(num_classes) if self.confusion_classes is None else self.confusion_classes
        labels = [*rows, *(label for one in self.wrong for label in (one.label, one.predicted))]
        if any(label >= num_classes for label in labels):
            raise ValueError(f"must name labels below the number of its classes, {num_classes}")
        if num_rows != len(rows) or any(len(row) != num_rows for row in self.confusion):
            raise ValueError(f"must have a row and a column of confusion for each of {len(rows)} classes")
        return self


MaybeNan = Annotated[float, Field(allow_inf_nan=True)]


class Epoch(Shape):
    """One epoch of metrics.json, and of a checkpoint, where a number of the validation split may be NaN."""

    epoch: Count
    loss: float
    accuracy: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    val_loss: MaybeNan | None = None
    val_accuracy: MaybeNan | None = None
    metrics: dict[str, MaybeNan] = Field(default_factory=dict)
    learning_rate: float | None = None
    seconds: Seconds
    examples_per_second: float


class _Spent(Shape):
    ratio: float
    wall_seconds: Seconds
    seconds: dict[Name, Seconds]


class MetricsFile(Shape):
    """metrics.json."""

    test: _Test
    history: list[Epoch]
    goodput: _Spent


def _check_finite(content: dict[str, Any]) -> dict[str, Any]:
    json.dumps(content, allow_nan=False)  # ValueError
    return content


class _Link(Shape):
    attempt: str
    from_step: Count
    computed_on: Annotated[dict[str, Any], AfterValidator(_check_finite)]


class _Ledger(Shape):
    first_started_seconds: Seconds
    saved_seconds: Seconds
    seconds: dict[Name, Seconds]
    down_seconds: Seconds
    overlap_seconds: Seconds
    attempts: Count
    interruptions: Count
    chain: list[_Link]
    is_bit_identical: bool
    is_end: bool


class _Meta(Shape):
    epoch_seconds: Seconds
    history: list[Epoch]
    ledger: _Ledger


class Checkpoint(Shape):
    """What a checkpoint says beside its arrays."""

    format: Literal[2]
    step: Count
    result_digest: str
    meta: _Meta
