"""The champion: one create-only record a move, numbered without gaps; the highest number says which run is served.

Creating version n + 1 is the compare-and-swap: of several writers one wins, and the others read and decide again. Owns the
records and their order, not who deserves to be champion. Never imports TensorFlow.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from job import contract
from job.config import Config
from job.errors import ConflictError, IntegrityError, NotFoundError
from job.runs import write
from job.runs.identity import canonical_json
from job.store.store import Store

FORMAT = 1
_MAX_BEST = 20
"""Test splits whose best accuracy is carried on from record to record: a schedule on new data makes one a night."""
_MAX_LISTINGS, _LISTING_SECONDS = 20, 0.05
_NAME = re.compile(r"(\d{9,})\.json")
_CLAIM = re.compile(r"(.+)\.(\d{9,})")

T = TypeVar("T")
By = Literal["gate", "promote", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What is worth knowing about a committed run.

    Attributes:
        created: when its run.json was written, ISO 8601 in UTC.
        evaluation_digest: of the test split that `accuracy` was measured on.
    """

    run: str
    created: str
    dataset: str
    evaluation_digest: str
    weights_digest: str
    accuracy: float

    @classmethod
    def of(cls, commit: Mapping[str, Any], *, created: str) -> "Committed":
        """The part of a COMMIT that pointers repeat."""
        return cls(
            run=str(commit["run"]),
            created=created,
            dataset=str(commit["dataset"].get("name")),
            evaluation_digest=str(commit["dataset"].get("evaluation_digest")),
            weights_digest=str(commit["weights_digest"]),
            accuracy=float(commit["metrics"]["test_accuracy"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """One move: from then on, until the next one, `run` is the champion of `model`.

    Attributes:
        version: the record's number, and the folder's in the serving layout.
        best: (evaluation digest, best accuracy of all champions on it), the one used last at the end.
        gate: the gate's decision, when it decided.
    """

    model: str
    version: int
    from_version: int | None
    from_run: str | None
    run: str
    when: str
    who: str
    by: By
    why: str
    forced: bool
    created: str
    dataset: str
    evaluation_digest: str
    weights_digest: str
    accuracy: float
    best: tuple[tuple[str, float], ...]
    gate: Mapping[str, Any] | None

    def best_accuracy(self, evaluation_digest: str) -> float | None:
        """Of all champions up to this one, on that test split; None when none was scored on it lately."""
        return dict(self.best).get(evaluation_digest)

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return canonical_json({"format": FORMAT, **asdict(self)})


def read_newest(store: Store, model: str) -> Pointer | None:
    """The champion, or None when there never was one.

    Raises:
        IntegrityError: its record is damaged.
    """
    for _ in range(_MAX_LISTINGS):
        versions = list_versions(store, model)
        if not versions:
            return None
        newest = read_version(store, model, version=versions[-1])
        if newest:
            return newest
        time.sleep(_LISTING_SECONDS)  # a listing may know more than the object's own place, for a moment
    raise IntegrityError(
        f"store {store.uri}: {contract.champion_key(model, version=versions[-1])} is listed and absent"
    )


def use_newest(store: Store, model: str, act: Callable[[Pointer], T]) -> T | None:
    """What `act` makes of the champion; None when there never was one.

    Who is slow may find that its run was removed because the champion has moved on: then `act` is given the next one.

    Raises:
        IntegrityError: it is the champion still, and it, or what it names, is damaged.
    """
    while newest := read_newest(store, model):
        try:
            return act(newest)
        except IntegrityError:
            if read_newest(store, model) == newest:
                raise
    return None


def history(store: Store, model: str) -> Iterator[Pointer]:
    """Every move, newest first; each is read when it is asked for.

    Raises:
        IntegrityError: a record is damaged or missing.
    """
    for version in reversed(list_versions(store, model)):
        pointer = read_version(store, model, version=version)
        if pointer is None:
            raise IntegrityError(
                f"store {store.uri}: {contract.champion_key(model, version=version)} is listed and absent"
            )
        yield pointer


def move(
    store: Store,
    model: str,
    *,
    before: Pointer | None,
    to: Committed,
    by: By,
    who: str,
    why: str,
    forced: bool = False,
    gate: Mapping[str, Any] | None = None,
) -> Pointer | None:
    """Make `to` the champion after `before`; None when somebody else moved first: read and decide again.

    The claim comes before the look at the marks of retention, which looks at claims after it has made its mark: one of the
    two sees the other, however long either sleeps in between.

    Raises:
        ConflictError: the run is being removed.
    """
    version = before.version + 1 if before else 1
    claim = canonical_json({"run": to.run, "model": model, "version": version})
    store.create(contract.claim_key(to.run, model=model, version=version), claim)
    if store.list_objects(contract.retirements_prefix(to.run)):
        raise ConflictError(
            f"run {to.run} is being removed, or was (retention.keep_runs); it cannot become champion any more"
        )
    pointer = Pointer(
        model=model,
        version=version,
        from_version=before.version if before else None,
        from_run=before.run if before else None,
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        who=who,
        by=by,
        why=why,
        forced=forced,
        best=_carry_best(before, to=to, gate=gate),
        gate=gate,
        **asdict(to),
    )
    data = pointer.to_bytes()
    return pointer if store.create(contract.champion_key(model, version=version), data) == data else None


def no_champion(store: Store, model: str) -> NotFoundError:
    """What to say where a champion is needed and none is."""
    return NotFoundError(f"model {model} has no champion in {store.uri}; see mnist-job runs")


def claimed_versions(store: Store, run_id: str) -> list[tuple[str, int]]:
    """(model, version) of every move to a run that was ever begun; whether it was made, the version itself says."""
    names = (entry.key.rpartition("/")[2] for entry in store.list_objects(contract.claims_prefix(run_id)))
    return [(match[1], int(match[2])) for name in names if (match := _CLAIM.fullmatch(name))]


def read_version(store: Store, model: str, *, version: int) -> Pointer | None:
    """One move; None when nobody has made it yet.

    Raises:
        IntegrityError: its record is damaged.
    """
    data = store.get(contract.champion_key(model, version=version))
    return _parse(data, model=model, version=version) if data is not None else None


def commit_of(store: Store, pointer: Pointer) -> dict[str, Any]:
    """The COMMIT that a champion version names.

    Raises:
        IntegrityError: it is not there.
    """
    try:
        commit = write.read_commit(store, pointer.run)
    except ConflictError as error:
        raise IntegrityError(f"{_describe(pointer)} was removed; {_ADVICE}") from error
    if commit is None:
        raise IntegrityError(f"{_describe(pointer)} has no COMMIT in {store.uri}; {_ADVICE}")
    return commit


_ADVICE = "make another run champion: mnist-job promote RUN --force"


def _describe(pointer: Pointer) -> str:
    return f"run {pointer.run}, which version {pointer.version} of {pointer.model} names,"


def model_name(config: Config, *, dataset: str) -> str:
    """The name that champions go by: as configured, or made of the dataset's."""
    if config.promotion.model_name:
        return config.promotion.model_name
    return re.sub(r"[^a-z0-9._-]+", "-", dataset.lower()).strip("-._") or "model"


def choose_model(store: Store, config: Config) -> str:
    """The configured model, or the only one that the store holds.

    Raises:
        NotFoundError: there is none, or several.
    """
    if config.promotion.model_name:
        return config.promotion.model_name
    found = store.list_folders(contract.MODELS_PREFIX)
    if len(found) == 1:
        return found[0]
    which = f"there are {', '.join(found)}" if found else "no run was promoted yet"
    raise NotFoundError(f"store {store.uri}: which model is not clear: {which}; name it with --promotion.model_name")


def list_versions(store: Store, model: str) -> list[int]:
    """Numbers of all moves, ascending."""
    names = (entry.key.rpartition("/")[2] for entry in store.list_objects(contract.champions_prefix(model)))
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def _carry_best(
    before: Pointer | None, *, to: Committed, gate: Mapping[str, Any] | None
) -> tuple[tuple[str, float], ...]:
    """The best accuracies so far, with the new champion's, and with the old one's where the gate has measured it again."""
    best = dict(before.best) if before else {}
    measured = [best.pop(to.evaluation_digest, 0.0), to.accuracy]
    if gate:
        measured.append(gate["numbers"].get("champion_accuracy", 0.0))
    return (*list(best.items())[1 - _MAX_BEST :], (to.evaluation_digest, max(measured)))


def _parse(data: bytes, *, model: str, version: int) -> Pointer:
    key = contract.champion_key(model, version=version)
    record = write.parse_object(data, key=key)
    names = {field.name for field in fields(Pointer)}
    missing = names - record.keys()
    if (
        missing
        or (record["model"], record["version"]) != (model, version)
        or not contract.is_run_id(str(record["run"]))
    ):
        reason = f"it lacks {', '.join(sorted(missing))}" if missing else "its model, version or run is another"
        raise IntegrityError(f"store: {key} is not the record of this champion: {reason}")
    values = {name: record[name] for name in names}
    try:
        datetime.fromisoformat(record["when"])
        best = tuple((str(digest), float(accuracy)) for digest, accuracy in record["best"])
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"store: {key} is not the record of this champion: {error}") from error
    return Pointer(**{**values, "best": best})
