"""The gate's way through the store: from a COMMIT to a decision that is recorded, and to the move that may follow.

1. The gate makes the move.
2. It writes `gate.json`.
3. An attempt that finds a move to its own run uses the decision of that move: the attempt before was killed between 1 and 2, or
   a rival is quicker.
4. When `gate.json` says otherwise, the attempt overwrites it.

Never imports TensorFlow. When the champion was scored on another test split, the gate calls `reevaluate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from job import clock
from job.config import PromotionSection
from job.contract import Event, gate_key
from job.digests import canonical_json
from job.errors import ConflictError, IntegrityError
from job.logs import emit, warn
from job.registry import champion
from job.registry.champion import Move
from job.registry.comparison import Anchor, Candidate, Champion, Probabilities
from job.registry.rules import Decision, GateRecord, decide, smallest_loss
from job.runs import read, write
from job.runs.read import CommittedModel, CommittedRun, Predictions
from job.store.store import Store
from job.texts import one_line

_WRONG_SECONDS = 3600.0
"""Two clocks that differ by more: one is wrong. The times in a copied store differ by less, as far as the copy took no longer."""

_MAX_REASON_CHARACTERS = 500
"""Of what a model of somebody else is to blame for."""
_SUM_TOLERANCE = 2e-2
"""How far the probabilities of an example may be from the sum 1: as far as those of a model in bfloat16."""


class Reevaluate(Protocol):
    """Scores the champion on this run's test split."""

    def __call__(self, files: Mapping[str, bytes], /, *, weights_digest: str) -> Any:
        """A SavedModel's files -> probabilities float32 [N, C].

        Raises:
            IntegrityError: the model cannot be used, or has not the weights of that digest.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Decides about one run.

    Attributes:
        model: the name whose champion it may become.
        who: for the record.
        reevaluate: None where the test split is not at hand: then models scored on two splits cannot be compared.
    """

    store: Store
    model: str
    rules: PromotionSection
    who: str
    reevaluate: Reevaluate | None

    def settle(self, committed: CommittedRun) -> GateRecord:
        """Decide once. When the verdict is `promoted`, move the champion. Return what gate.json records.

        Raises:
            IntegrityError: the champion, or what it names, is damaged.
            RetiredError: the run is being removed, or was.
        """
        key = gate_key(committed.run)
        recorded = read_gate(self.store, committed.run)
        if recorded is None:
            ours = self._decide_and_move(committed)
            data = self.store.create(key, _to_bytes(ours, key=key))
            recorded = GateRecord.of(read.parse_object(data, key=key), key=key)
        else:
            ours = self._own_move(committed) or recorded
        if ours.verdict == "promoted" and recorded != ours:
            warn("gate.other_decision", ours=ours.reason, standing=recorded.reason)
            self.store.put(key, _to_bytes(ours, key=key))  # the decision of the attempt that made the move counts
            recorded = ours
        told = ("verdict", "rule", "reason", "model", "version")
        emit(Event.GATE_DECIDED, **{name: getattr(recorded, name) for name in told})
        return recorded

    def assess(self, committed: CommittedRun, newest: Move | None) -> GateRecord:
        """What the gate says about a run beside that champion; changes nothing."""
        model = committed.model(created=read.created_at(self.store, committed))
        predictions = read.read_predictions(self.store, committed)
        candidate = Candidate(model=model, predictions=predictions, recorded=committed.record["metrics"])
        facts = self._facts_about(newest, committed=committed, predictions=predictions) if newest else None
        if facts and model.created < facts.model.created and self._was_clock_wrong(model, facts.model):
            facts = replace(facts, model=replace(facts.model, created=model.created))
        return self._to_record(decide(candidate, facts, rules=self.rules), run=committed.run, newest=newest)

    def _decide_and_move(self, committed: CommittedRun) -> GateRecord:
        to = committed.model(created=read.created_at(self.store, committed))
        while True:  # another turn: another writer has moved the champion meanwhile
            newest = champion.read_newest(self.store, self.model)
            own = self._own_move(committed)  # after the newest was read: no move up to that one is missed
            if own:
                return own
            try:
                ours = self.assess(committed, newest)
            except IntegrityError:
                read.read_commit(self.store, to.run)  # raises RetiredError when retention has removed this run
                if champion.read_newest(self.store, self.model) == newest:
                    raise
                continue  # the champion that was read was removed since: there is a newer one
            if ours.verdict != "promoted":
                return ours
            if champion.move(
                self.store, self.model, before=newest, to=to, by="gate", who=self.who, why=ours.reason, gate=ours
            ):
                return ours

    def _own_move(self, committed: CommittedRun) -> GateRecord | None:
        """The decision behind a move to this run: another attempt made the move, and was killed since or is still at work."""
        for model, version in champion.claimed_versions(self.store, committed.run):
            made = champion.read_version(self.store, model, version=version) if model == self.model else None
            if made and made.run == committed.run and made.by == "gate" and made.gate:
                return made.gate
        return None

    def _facts_about(self, newest: Move, *, committed: CommittedRun, predictions: Predictions) -> Champion:
        of, of_champion = None, None
        if newest.to.dataset == committed.dataset.name:  # else that decides, whatever they predict
            of = champion.commit_of(self.store, newest)
            of_champion = read.read_predictions(self.store, of)
        digest = str(committed.dataset.evaluation_digest)
        anchor = newest.anchor_on(digest, metric=self.rules.metric)
        probabilities, unscored = (
            self._score(of, of_champion, committed, predictions) if of and of_champion else (None, "")
        )
        is_same_split = of and of.dataset.evaluation_digest == committed.dataset.evaluation_digest
        return Champion(
            model=newest.to,
            version=newest.version,
            num_classes=of_champion.probabilities.shape[1] if of_champion else None,
            class_names=of_champion.class_names if of_champion else None,
            probabilities=probabilities,
            unscored=unscored,
            recorded=of.record["metrics"] if of and is_same_split else {},
            anchor=anchor,
            anchor_probabilities=self._read_anchor(anchor, newest, committed),
        )

    def _score(
        self, of: CommittedRun, of_champion: Predictions, committed: CommittedRun, predictions: Predictions
    ) -> tuple[Probabilities | None, str]:
        """The champion's on the candidate's test split; None when it cannot be scored there, and when both are one model.

        Beside it, why its model could not be used, which no retry would change: the verdict says it.
        """
        if of.weights_digest == committed.weights_digest or not _are_alike(of_champion, predictions):
            return None, ""
        digest = committed.dataset.evaluation_digest
        if digest is not None and of.dataset.evaluation_digest == digest:
            return of_champion.probabilities, ""
        if self.reevaluate is None:
            return None, ""
        emit("gate.reevaluate", champion=of.run, reason="it was scored on another test split")
        files = read.read_model(self.store, of)
        try:
            probabilities = np.asarray(self.reevaluate(files, weights_digest=of.weights_digest), np.float32)
            _check_reevaluated(probabilities, shape=predictions.probabilities.shape)
            return probabilities, ""
        except IntegrityError as error:
            warn("gate.champion_unscored", champion=of.run, reason=str(error))
            return None, one_line(error, limit=_MAX_REASON_CHARACTERS)

    def _read_anchor(self, anchor: Anchor | None, newest: Move, committed: CommittedRun) -> Probabilities | None:
        """Its predictions, as long as they are in the store; None when the champion is the anchor itself."""
        if anchor is None or anchor.run in (None, newest.run):
            return None
        try:
            run = read.read_commit(self.store, str(anchor.run))
            if run and run.dataset.evaluation_digest == committed.dataset.evaluation_digest:
                return read.read_predictions(self.store, run).probabilities
        except (ConflictError, IntegrityError) as error:
            warn("gate.anchor_unreadable", run_of_anchor=anchor.run, reason=str(error))
        return None

    def _was_clock_wrong(self, ours: CommittedModel, theirs: CommittedModel) -> bool:
        """Whether the champion only seems to be younger: it starts in the future, or the store saw it begin long before ours."""
        begun, champions_begun = (read.begun_seconds(self.store, run) for run in (ours.run, theirs.run))
        is_ahead = theirs.created > clock.timestamp(clock.now() + _WRONG_SECONDS)
        is_denied = begun is not None and champions_begun is not None and begun > champions_begun + _WRONG_SECONDS
        if is_ahead or is_denied:
            warn(
                "gate.clock_was_wrong",
                champion=theirs.run,
                champion_created=theirs.created,
                created=ours.created,
                reason="a clock was wrong when one of the two runs was started; this run is not taken for the older one",
            )
        return is_ahead or is_denied

    def _to_record(self, decision: Decision, *, run: str, newest: Move | None) -> GateRecord:
        return GateRecord(
            run=run,
            model=self.model,
            decided=clock.timestamp(),
            who=self.who,
            verdict=decision.verdict,
            rule=decision.rule,
            reason=decision.reason,
            numbers=dict(decision.numbers),
            compared_with={"version": newest.version, "run": newest.run} if newest else None,
            version=(newest.version + 1 if newest else 1) if decision.verdict == "promoted" else None,
        )


def warn_of_resolution(rules: PromotionSection, *, num_examples: int) -> None:
    """Say before the training that the test split is too small for `promotion.max_accuracy_drop`, where that is so."""
    smallest = smallest_loss(rules, num_examples=num_examples)
    if not rules.enabled or smallest is None or rules.max_accuracy_drop >= smallest:
        return
    one, allowed = 1 / num_examples, f"promotion.max_accuracy_drop {rules.max_accuracy_drop:g}"
    warn(
        "gate.coarse",
        examples=num_examples,
        one_example=round(one, 6),
        smallest_loss=round(smallest, 6),
        max_accuracy_drop=rules.max_accuracy_drop,
        reason=f"one of {num_examples} test examples is {one:.4f}, and the gate refuses no {rules.metric} that is less than "
        f"{smallest:.4f} below the champion's: {allowed} is smaller, and decides nothing; take more test examples, or allow more",
    )


def _to_bytes(decision: GateRecord, *, key: str) -> bytes:
    """As gate.json."""
    data = canonical_json(decision.to_json())
    return write.readable(data, lambda data: GateRecord.of(read.parse_object(data, key=key), key=key))


def read_gate(store: Store, run_id: str) -> GateRecord | None:
    """What the gate decided about a run; None when it has not decided yet.

    Raises:
        IntegrityError: it is there and cannot be read.
    """
    record = read_gate_json(store, run_id)
    return GateRecord.of(record, key=gate_key(run_id)) if record is not None else None


def read_gate_json(store: Store, run_id: str) -> dict[str, Any] | None:
    """gate.json as it is stored; None when the gate has not decided yet.

    Raises:
        IntegrityError: it is no JSON object.
    """
    key = gate_key(run_id)
    data = read.get_record(store, key)
    return read.parse_object(data, key=key) if data is not None else None


def _check_reevaluated(probabilities: Probabilities, *, shape: tuple[int, ...]) -> None:
    """Raises:
    IntegrityError: the champion's model says nothing that a candidate could be compared with.
    """
    what = "the model of the champion must give probabilities"
    if probabilities.shape != shape:
        raise IntegrityError(f"{what} of shape {list(shape)}, received {list(probabilities.shape)}")
    if not np.isfinite(probabilities).all():
        raise IntegrityError(f"{what}, received numbers that are not finite")
    lowest, off = float(probabilities.min()), float(np.abs(probabilities.sum(1, dtype=np.float64) - 1).max())
    if lowest < 0 or off > _SUM_TOLERANCE:
        raise IntegrityError(
            f"{what} from 0 on with the sum 1, received {lowest:.3g}, and sums that differ by {off:.3g}"
        )


def _are_alike(one: Predictions, other: Predictions) -> bool:
    """Whether both have the same image type and shape, and the same classes, as far as these are recorded."""
    names = {one.class_names, other.class_names} - {None}
    return (
        one.sample_images.dtype == other.sample_images.dtype
        and one.sample_images.shape[1:] == other.sample_images.shape[1:]
        and one.probabilities.shape[1] == other.probabilities.shape[1]
        and len(names) <= 1
    )
