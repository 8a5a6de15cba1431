"""The gate's way through the store: from a COMMIT to a decision that is recorded, and to the move that may follow.

The gate makes the move first and writes `gate.json` after it. Another attempt may have been killed between the two, or may be
quicker than this one. Then this attempt finds the run's own move, takes the decision from there, and corrects a `gate.json` that
says otherwise. Never imports TensorFlow; a champion that was scored on other examples is scored again through a function that the
gate is handed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from job import clock
from job.config import PromotionSection
from job.contract import Event, gate_key
from job.digests import canonical_json
from job.errors import IntegrityError
from job.logs import emit, warn
from job.registry import champion
from job.registry.champion import Move
from job.registry.rules import Candidate, Champion, Decision, GateRecord, decide
from job.runs import read
from job.runs.read import CommittedRun, Predictions
from job.store.store import Store

Reevaluate = Callable[[Mapping[str, bytes]], Any]
"""A SavedModel's files -> probabilities float32 [N, C] on this run's test split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What one run is measured by.

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
        """Decide about a committed run once and for all, move the champion when it deserves it, and return gate.json.

        Raises:
            IntegrityError: the champion, or what it names, is damaged.
            ConflictError: the run is being removed.
        """
        key = gate_key(committed.run)
        recorded = read_gate(self.store, committed.run)
        if recorded is None:
            ours = self._decide_and_move(committed)
            data = self.store.create(key, canonical_json(ours.to_json()))
            recorded = GateRecord.of(read.parse_object(data, key=key), key=key)
        else:
            ours = self._own_move(committed) or recorded
        if ours.verdict == "promoted" and recorded != ours:
            warn("gate.other_decision", ours=ours.reason, recorded=recorded.reason)
            self.store.put(key, canonical_json(ours.to_json()))  # of the one attempt that has moved the champion
            recorded = ours
        told = ("verdict", "rule", "reason", "model", "version")
        emit(Event.GATE_DECIDED, **{name: getattr(recorded, name) for name in told})
        return recorded

    def assess(self, committed: CommittedRun, newest: Move | None) -> GateRecord:
        """What the gate says about a run beside that champion; changes nothing."""
        model = committed.model(created=read.created_at(self.store, committed))
        predictions = read.read_predictions(self.store, committed)
        candidate = Candidate(model=model, predicted=predictions.probabilities.argmax(1), labels=predictions.labels)
        facts = self._facts_about(newest, committed=committed, predictions=predictions) if newest else None
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
                read.read_commit(self.store, to.run)  # says so when retention has removed this very run
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
        """The decision behind the run's own move.

        An attempt made it that was killed before it wrote gate.json, or that is quicker than this one.
        """
        for model, version in champion.claimed_versions(self.store, committed.run):
            made = champion.read_version(self.store, model, version=version) if model == self.model else None
            if made and made.run == committed.run and made.by == "gate" and made.gate:
                return made.gate
        return None

    def _facts_about(self, newest: Move, *, committed: CommittedRun, predictions: Predictions) -> Champion:
        digest, predicted = committed.dataset.evaluation_digest, None
        is_comparable = newest.to.dataset == committed.dataset.name
        if is_comparable and newest.to.weights_digest != committed.weights_digest:
            run_of_champion = champion.commit_of(self.store, newest)
            of_champion = read.read_predictions(self.store, run_of_champion)
            if digest is not None and newest.to.evaluation_digest == digest:
                predicted = of_champion.probabilities.argmax(1)
            elif self.reevaluate and _are_alike(of_champion, predictions):
                emit("gate.reevaluate", champion=newest.run, reason="it was scored on another test split")
                predicted = self.reevaluate(read.read_model(self.store, run_of_champion)).argmax(1)
        return Champion(
            model=newest.to,
            version=newest.version,
            predicted=predicted,
            best_accuracy=newest.best_accuracy(str(digest)),
        )

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


def read_gate(store: Store, run_id: str) -> GateRecord | None:
    """What the gate decided about a run; None when it has not decided yet.

    Raises:
        IntegrityError: it is there and cannot be read.
    """
    key = gate_key(run_id)
    data = store.get(key)
    return GateRecord.of(read.parse_object(data, key=key), key=key) if data is not None else None


def _are_alike(one: Predictions, other: Predictions) -> bool:
    """Whether a model of the one can be asked about images of the other, and answers in the same classes."""
    return (
        one.sample_images.shape[1:] == other.sample_images.shape[1:]
        and one.probabilities.shape[1] == other.probabilities.shape[1]
    )
