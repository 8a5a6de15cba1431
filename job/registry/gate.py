"""The gate's way through the store: from a COMMIT to a decision that stands, and the move that it may mean.

Pointer first, then `gate.json`: of several attempts at once, or after a kill in between, whoever finds the run's own move
in the history takes the decision from there, and corrects what a rival may have written before. Never imports TensorFlow; a
champion that was scored on other examples is scored again through a function that it is handed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from job.contract import gate_key
from job.errors import IntegrityError
from job.logs import emit, warn
from job.registry import champion
from job.registry.champion import Committed, Pointer
from job.registry.rules import Candidate, Champion, Decision, Rules, decide
from job.runs import read, write
from job.runs.identity import canonical_json
from job.runs.read import Predictions
from job.store.store import Store

FORMAT = 1

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
    rules: Rules
    who: str
    reevaluate: Reevaluate | None

    def settle(self, commit: Mapping[str, Any]) -> dict[str, Any]:
        """Decide about a committed run once and for all, move the champion when it deserves it, and return gate.json.

        Raises:
            IntegrityError: the champion, or what it names, is damaged.
            ConflictError: the run is being removed.
        """
        run = str(commit["run"])
        standing = read_gate(self.store, run)
        if standing is None:
            record = self._decide_and_move(commit)
            standing = write.parse_object(self.store.create(gate_key(run), canonical_json(record)), key=gate_key(run))
        else:
            record = self._own_move(commit) or standing
        if record["verdict"] == "promoted" and standing != record:
            warn("gate.other_decision", ours=record["reason"], standing=standing["reason"])
            self.store.put(gate_key(run), canonical_json(record))  # of the one attempt that has moved the champion
            standing = record
        emit("gate.decided", **{name: standing[name] for name in ("verdict", "rule", "reason", "model", "version")})
        return standing

    def assess(self, commit: Mapping[str, Any], newest: Pointer | None) -> dict[str, Any]:
        """What the gate says about a run beside that champion; changes nothing."""
        created = read.created_at(self.store, commit)
        predictions = read.read_predictions(self.store, commit)
        candidate = Candidate(
            run=str(commit["run"]),
            created=created,
            dataset=str(commit["dataset"].get("name")),
            weights_digest=str(commit["weights_digest"]),
            predicted=predictions.probabilities.argmax(1),
            labels=predictions.labels,
        )
        facts = self._facts_about(newest, commit=commit, predictions=predictions) if newest else None
        return self._to_record(decide(candidate, facts, rules=self.rules), commit=commit, newest=newest)

    def _decide_and_move(self, commit: Mapping[str, Any]) -> dict[str, Any]:
        to = Committed.of(commit, created=read.created_at(self.store, commit))
        while True:  # each turn more is a move that somebody else has made
            newest = champion.read_newest(self.store, self.model)
            own = self._own_move(commit)  # after the newest was read: no move up to that one is missed
            if own:
                return own
            try:
                record = self.assess(commit, newest)
            except IntegrityError:
                write.read_commit(self.store, to.run)  # says so when retention has removed this very run
                if champion.read_newest(self.store, self.model) == newest:
                    raise
                continue  # the champion that was read was removed since: there is a newer one
            if record["verdict"] != "promoted":
                return record
            why = record["reason"]
            if champion.move(
                self.store, self.model, before=newest, to=to, by="gate", who=self.who, why=why, gate=record
            ):
                return record

    def _own_move(self, commit: Mapping[str, Any]) -> dict[str, Any] | None:
        """The decision behind the run's own move: of an attempt that was killed before gate.json, or is quicker than this one."""
        for model, version in champion.claimed_versions(self.store, str(commit["run"])):
            pointer = champion.read_version(self.store, model, version=version) if model == self.model else None
            if pointer and pointer.run == commit["run"] and pointer.by == "gate" and pointer.gate:
                return dict(pointer.gate)
        return None

    def _facts_about(self, newest: Pointer, *, commit: Mapping[str, Any], predictions: Predictions) -> Champion:
        digest = commit["dataset"].get("evaluation_digest")
        predicted = None
        if newest.dataset == commit["dataset"].get("name") and newest.weights_digest != commit["weights_digest"]:
            standing = champion.commit_of(self.store, newest)
            of_champion = read.read_predictions(self.store, standing)
            if digest is not None and newest.evaluation_digest == digest:
                predicted = of_champion.probabilities.argmax(1)
            elif self.reevaluate and _are_alike(of_champion, predictions):
                emit("gate.reevaluate", champion=newest.run, reason="it was scored on another test split")
                predicted = self.reevaluate(read.read_model(self.store, standing)).argmax(1)
        return Champion(
            run=newest.run,
            created=newest.created,
            dataset=newest.dataset,
            weights_digest=newest.weights_digest,
            version=newest.version,
            predicted=predicted,
            best_accuracy=newest.best_accuracy(str(digest)),
        )

    def _to_record(self, decision: Decision, *, commit: Mapping[str, Any], newest: Pointer | None) -> dict[str, Any]:
        is_promoted = decision.verdict == "promoted"
        return {
            "format": FORMAT,
            "run": commit["run"],
            "model": self.model,
            "decided": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": self.who,
            "verdict": decision.verdict,
            "rule": decision.rule,
            "reason": decision.reason,
            "numbers": dict(decision.numbers),
            "compared_with": {"version": newest.version, "run": newest.run} if newest else None,
            "version": (newest.version + 1 if newest else 1) if is_promoted else None,
        }


def read_gate(store: Store, run_id: str) -> dict[str, Any] | None:
    """What the gate decided about a run; None when it has not decided yet.

    Raises:
        IntegrityError: it is there and cannot be read.
    """
    data = store.get(gate_key(run_id))
    return write.parse_object(data, key=gate_key(run_id)) if data is not None else None


def _are_alike(one: Predictions, other: Predictions) -> bool:
    """Whether a model of the one can be asked about images of the other, and answers in the same classes."""
    return (
        one.sample_images.shape[1:] == other.sample_images.shape[1:]
        and one.probabilities.shape[1] == other.probabilities.shape[1]
    )
