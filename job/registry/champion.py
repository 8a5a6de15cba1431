"""The champion: one create-only record for each move, numbered without gaps; the highest number says which run is served.

Creating version n + 1 is the compare-and-swap. When several writers create it, the store accepts one; the others read the new
champion and decide again. Owns the records and their order, not which run deserves to be champion. Never imports TensorFlow.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, Strict, model_validator

from job import clock, contract
from job.config import Config
from job.digests import canonical_json
from job.errors import ConflictError, IntegrityError, NotFoundError, RetiredError
from job.logs import warn
from job.measures import ACCURACY, is_measure
from job.registry.comparison import Anchor, key_of
from job.registry.rules import GateRecord
from job.runs import read, write
from job.runs.read import CommittedModel, CommittedRun
from job.runs.shapes import Count, Digest, Id, Name, Shape, Share, Text, Time, to_shape
from job.store.store import Store

FORMAT = 1
_MAX_ANCHORS = 20
"""Each record carries the anchors of so many test splits and metrics: a nightly schedule on new data adds one a night."""
_MAX_LISTINGS, _LISTING_SECONDS = 20, 0.05

T = TypeVar("T")
By = Literal["gate", "promote", "rollback"]


class _AnchorFile(Shape):
    evaluation_digest: Digest
    metric: Name
    value: float
    run: Id | None

    @model_validator(mode="after")
    def _check_value(self) -> "_AnchorFile":
        if is_measure(self.metric) and not 0 <= self.value <= 1:
            raise ValueError(f"must have a value of 0 to 1 for {self.metric}")
        return self


class _MoveFile(Shape):
    """What the record of a move must hold."""

    format: Literal[1] = 1
    model: Name
    version: Count
    from_version: Count | None
    from_run: Id | None
    run: Id
    created: Name
    dataset: Name
    evaluation_digest: Digest
    weights_digest: Digest
    accuracy: Share
    when: Time
    who: Name
    by: Name
    why: Text
    forced: bool
    anchors: Annotated[list[_AnchorFile], Field(max_length=_MAX_ANCHORS)] | None = None
    best: list[Annotated[tuple[Digest, Share], Strict(strict=False)]]
    gate: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One champion record: it makes `to` the champion of the name `model` until the next move.

    Attributes:
        version: the record's number, and the folder's in the serving layout.
        when: ISO 8601 in UTC.
        anchors: of each test split and metric; the split used last is at the end.
        gate: the gate's decision; None for a move by hand that was forced, and for a rollback.
    """

    model: str
    version: int
    from_version: int | None
    from_run: str | None
    to: CommittedModel
    when: str
    who: str
    by: By
    why: str
    forced: bool
    anchors: tuple[Anchor, ...]
    gate: GateRecord | None

    @property
    def run(self) -> str:
        """The run whose model is served."""
        return self.to.run

    def anchor_on(self, evaluation_digest: str, *, metric: str) -> Anchor | None:
        """What a candidate is measured by; None when no champion was scored on that split lately."""
        wanted = (evaluation_digest, metric)
        return next((each for each in self.anchors if (each.evaluation_digest, each.metric) == wanted), None)

    def runs_to_compare_with(self) -> set[str]:
        """The champion's run, and the anchors' on its test split: a candidate is compared with their predictions."""
        anchors = (each.run for each in self.anchors if each.evaluation_digest == self.to.evaluation_digest)
        return {self.run, *(run for run in anchors if run)}

    def to_bytes(self) -> bytes:
        """As it is stored: the fields of `to` stand beside the others. Older versions of the program read `best`."""
        record = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("to", "gate")}
        best = [(each.evaluation_digest, each.value) for each in self.anchors if each.metric == ACCURACY]
        own = {"anchors": [asdict(each) for each in self.anchors], "gate": self.gate.to_json() if self.gate else None}
        return canonical_json({"format": FORMAT, **record, **asdict(self.to), **own, "best": best})


def read_newest(store: Store, model: str) -> Move | None:
    """The champion, or None when there never was one.

    Raises:
        IntegrityError: its record is damaged.
    """
    for _ in range(_MAX_LISTINGS):
        versions = list_versions(store, model)
        if not versions:
            return None
        newest = _read_champion(store, model, version=versions[-1])
        if newest:
            return newest
        clock.sleep(_LISTING_SECONDS)  # some stores list an object a moment before they return it
    raise IntegrityError(
        f"store {store.uri}: {contract.champion_key(model, version=versions[-1])} is listed and absent"
    )


def _read_champion(store: Store, model: str, *, version: int) -> Move | None:
    try:
        return read_version(store, model, version=version)
    except IntegrityError as error:
        place = store.location(contract.champion_key(model, version=version))
        raise IntegrityError(
            f"{error}; so nobody knows the champion of {model}: restore {place}, or delete it to go on from the version before"
        ) from error


def use_newest(store: Store, model: str, act: Callable[[Move], T]) -> T | None:
    """What `act` makes of the champion; None when there never was one.

    While `act` works, a newer champion may be made, and retention may remove the run of the older one. Then `act` is given the
    newer champion.

    Raises:
        IntegrityError: the champion, or an object that it names, is damaged, and no newer champion exists.
    """
    while newest := read_newest(store, model):
        try:
            return act(newest)
        except IntegrityError:
            if read_newest(store, model) == newest:
                raise
    return None


def readable_history(store: Store, model: str) -> Iterator[Move]:
    """Every move whose record can be read, newest first; a warning names each of the others."""
    for version in reversed(list_versions(store, model)):
        try:
            made = read_version(store, model, version=version)
        except IntegrityError as error:
            warn("champion.skipped", model=model, version=version, reason=str(error))
            continue
        if made:
            yield made
        else:
            warn("champion.skipped", model=model, version=version, reason="it is listed and absent")


def history(store: Store, model: str) -> Iterator[Move]:
    """Every move, newest first; each is read when it is asked for.

    Raises:
        IntegrityError: a record is damaged or missing.
    """
    for version in reversed(list_versions(store, model)):
        made = read_version(store, model, version=version)
        if made is None:
            raise IntegrityError(
                f"store {store.uri}: {contract.champion_key(model, version=version)} is listed and absent"
            )
        yield made


def move(
    store: Store,
    model: str,
    *,
    before: Move | None,
    to: CommittedModel,
    by: By,
    who: str,
    why: str,
    forced: bool = False,
    gate: GateRecord | None = None,
) -> Move | None:
    """Make `to` the champion after `before`; None when another writer moved first: read and decide again.

    Raises:
        RetiredError: the run is being removed.
        IntegrityError: its record could not be read again, such as for a very long reason; nothing was written.
    """
    version = before.version + 1 if before else 1
    made = Move(
        model=model,
        version=version,
        from_version=before.version if before else None,
        from_run=before.run if before else None,
        when=clock.timestamp(),
        who=who,
        by=by,
        why=why,
        forced=forced,
        anchors=_carry_anchors(before, to=to, gate=gate),
        to=to,
        gate=gate,
    )
    data = write.readable(made.to_bytes(), lambda data: _parse(data, model=model, version=version))
    # 1. This move writes a claim. Then it looks for marks of retention.
    # 2. Retention writes its mark. Then it looks for claims (`retention.remove_runs`).
    # 3. So one of the two sees the other, however long either pauses in between.
    claim = canonical_json({"run": to.run, "model": model, "version": version})
    store.create(contract.claim_key(to.run, model=model, version=version), claim)
    marks = store.list_objects(contract.retirements_prefix(to.run))
    if any(contract.retirement_of_key(entry.key) for entry in marks):
        raise RetiredError(
            f"run {to.run} is being removed, or was (retention.keep_runs); it cannot become champion any more"
        )
    return made if store.create(contract.champion_key(model, version=version), data) == data else None


def no_champion(store: Store, model: str) -> NotFoundError:
    """What to say where a champion is needed and none is."""
    return NotFoundError(f"model {model} has no champion in {store.uri}; see mnist-job runs")


def claimed_versions(store: Store, run_id: str) -> list[tuple[str, int]]:
    """(model, version) of every claim on a run. Whether a claim became a move, the record of that version says."""
    keys = (entry.key for entry in store.list_objects(contract.claims_prefix(run_id)))
    return [(parts[1], parts[2]) for key in keys if (parts := contract.claim_of_key(key))]


def read_version(store: Store, model: str, *, version: int) -> Move | None:
    """One move; None when it was not made yet.

    Raises:
        IntegrityError: its record is damaged.
    """
    data = read.get_record(store, contract.champion_key(model, version=version))
    return _parse(data, model=model, version=version) if data is not None else None


def commit_of(store: Store, made: Move) -> CommittedRun:
    """The COMMIT that a champion version names.

    Raises:
        IntegrityError: it is not there.
    """
    try:
        committed = read.read_commit(store, made.run)
    except ConflictError as error:
        raise IntegrityError(f"{_describe(made)} was removed; {_ADVICE}") from error
    if committed is None:
        raise IntegrityError(f"{_describe(made)} has no COMMIT in {store.uri}; {_ADVICE}")
    return committed


_ADVICE = "make another run champion: mnist-job promote RUN --force"


def _describe(made: Move) -> str:
    return f"run {made.run}, which version {made.version} of {made.model} names,"


def model_name(config: Config, *, dataset: str) -> str:
    """The name that champions go by: as configured, or made of the dataset's."""
    return config.promotion.model_name or _name_of_dataset(dataset)


def model_of(committed: CommittedRun) -> str:
    """The name that the run's champion would go by, as its COMMIT records the settings."""
    promotion = committed.record.get("config", {}).get("promotion", {})
    return str(promotion.get("model_name") or _name_of_dataset(committed.dataset.name))


def _name_of_dataset(dataset: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", dataset.lower()).strip("-._") or "model"


def choose_model(store: Store, config: Config) -> str:
    """The configured model, or the only one that the store holds.

    Raises:
        NotFoundError: there is none, or several.
    """
    if config.promotion.model_name:
        return config.promotion.model_name
    found = list_models(store)
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError(f"store {store.uri}: no run was promoted yet; if one was, correct store.uri")
    raise NotFoundError(
        f"store {store.uri}: which model is not clear: there are {', '.join(found)}; name it with --promotion.model_name"
    )


def list_models(store: Store) -> list[str]:
    """Names of all models that ever had a champion, sorted; other folders beside them are foreign."""
    names = store.list_folders(contract.MODELS_PREFIX)
    return [name for name in names if contract.is_model_name(name) and list_versions(store, name)]


def list_versions(store: Store, model: str) -> list[int]:
    """Numbers of all moves, ascending."""
    keys = (entry.key for entry in store.list_objects(contract.champions_prefix(model)))
    return sorted(parts[1] for key in keys if (parts := contract.champion_of_key(key)))


def _carry_anchors(before: Move | None, *, to: CommittedModel, gate: GateRecord | None) -> tuple[Anchor, ...]:
    """Those of the move before; the new champion becomes one where there was none, and where the gate says so."""
    carried, numbers = list(before.anchors) if before else [], gate.numbers if gate else {}
    compared = numbers.get("metric", ACCURACY)
    for metric in dict.fromkeys((ACCURACY, compared)):
        anchor = standing = before.anchor_on(to.evaluation_digest, metric=metric) if before else None
        value = to.accuracy if metric == ACCURACY else numbers.get(key_of(metric))
        is_new = standing is None or (metric == compared and numbers.get("is_new_anchor"))
        if is_new and value is not None:
            anchor = Anchor(evaluation_digest=to.evaluation_digest, metric=metric, value=value, run=to.run)
        if anchor:
            carried = [*(each for each in carried if each != standing), anchor]
    return tuple(carried[-_MAX_ANCHORS:])


def _parse(data: bytes, *, model: str, version: int) -> Move:
    key = contract.champion_key(model, version=version)
    record, what = read.parse_object(data, key=key), f"store: {key} is not the record of this champion"
    checked = to_shape(_MoveFile, record, name=what)
    if (checked.model, checked.version) != (model, version):
        raise IntegrityError(f"{what}: its model or version is another")
    of_move = [field.name for field in fields(Move) if field.name not in ("to", "anchors", "gate")]
    to = CommittedModel(**{field.name: record[field.name] for field in fields(CommittedModel)})
    of_record = {name: record[name] for name in of_move}
    return Move(**of_record, anchors=_parse_anchors(checked), gate=_parse_gate(checked.gate, key=key), to=to)


def _parse_anchors(checked: _MoveFile) -> tuple[Anchor, ...]:
    """Records of older versions have `best` alone: pairs of a digest and the best accuracy on that split."""
    if checked.anchors is None:
        return tuple(
            Anchor(evaluation_digest=digest, metric=ACCURACY, value=accuracy, run=None)
            for digest, accuracy in checked.best
        )
    return tuple(Anchor(**each.model_dump()) for each in checked.anchors)


def _parse_gate(record: object, *, key: str) -> GateRecord | None:
    """The decision behind a move. One that cannot be read must not hide the move: who is champion does not depend on it."""
    try:
        return GateRecord.of(record, key=key) if isinstance(record, dict) and record else None
    except IntegrityError as error:
        warn("champion.gate_unreadable", reason=str(error))
        return None
