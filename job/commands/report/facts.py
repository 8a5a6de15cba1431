"""What a report says, read from the store. What cannot be read is left out, and the page says so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from job.config import StoreSection
from job.errors import ConflictError, IntegrityError
from job.registry import champion
from job.registry.champion import Move
from job.registry.rules import GateRecord
from job.runs import read
from job.runs.read import CommittedRun
from job.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The champion that the gate compared the run with.

    Attributes:
        move: that made it champion; None where its record cannot be read.
        committed: its COMMIT; None once retention has removed it.
        metrics: its metrics.json, when it was scored on the same test examples.
    """

    version: int
    run: str
    move: Move | None = None
    committed: CommittedRun | None = None
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is on a page.

    Attributes:
        metrics: the run's metrics.json.
        gate: its gate.json; None when it was not asked.
        rival: None when there was no champion.
        pictures: of mistakes, by their position in the test split.
        missing: what could not be read, for people.
        store: as this program reaches it.
    """

    committed: CommittedRun
    metrics: Mapping[str, Any]
    gate: GateRecord | None = None
    rival: Rival | None = None
    pictures: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    store: StoreSection = field(default_factory=StoreSection)


def gather(store: Store, committed: CommittedRun, gate: GateRecord | None, *, settings: StoreSection) -> Facts:
    """Read what belongs to a run.

    Raises:
        IntegrityError: its metrics.json is damaged.
        UnavailableError: the store is away.
    """
    missing: list[str] = []
    pictures = _try(lambda: read.read_mistakes(store, committed), "the pictures of the mistakes", missing)
    return Facts(
        committed=committed,
        metrics=read.read_metrics(store, committed),
        gate=gate,
        rival=_find_rival(store, committed, gate, missing),
        pictures=pictures or {},
        missing=tuple(missing),
        store=settings,
    )


def _find_rival(store: Store, committed: CommittedRun, gate: GateRecord | None, missing: list[str]) -> Rival | None:
    said = (gate.compared_with or {}) if gate else {}
    version, run = said.get("version"), said.get("run")
    if gate is None or not isinstance(version, int) or not isinstance(run, str):
        return None
    move = _try(
        lambda: champion.read_version(store, gate.model, version=version), f"the record of version {version}", missing
    )
    if move is None or move.run != run:
        return Rival(version=version, run=run)
    theirs = _try(lambda: read.read_commit(store, move.run), f"the champion's run {run}", missing)
    metrics = None
    if theirs and theirs.dataset.evaluation_digest == committed.dataset.evaluation_digest:
        metrics = _try(lambda: read.read_metrics(store, theirs), f"the champion's scores (run {run})", missing)
    return Rival(version=version, run=run, move=move, committed=theirs, metrics=metrics)


def _try(look: Callable[[], T], what: str, missing: list[str]) -> T | None:
    """What is there; None, and a line for the reader, when it is damaged or was removed."""
    try:
        return look()
    except (IntegrityError, ConflictError) as error:
        missing.append(f"{what}: {error}")
        return None
