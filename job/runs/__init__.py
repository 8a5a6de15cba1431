"""What a run leaves in the store, `runs/<id>/`.

identity.py    what decides a result; the run id, the seed, the result digest
lineage.py     attempt.json: where an attempt comes from, and what computed it
write.py       run.json, immutable attempts, COMMIT.json: the order of the writes
shapes.py      what each record of a run must hold
read.py        COMMIT as a `CommittedRun`, and what it names, verified
state.py       how a run stands that has no COMMIT: running, ended, silent
checkpoint.py  resumable state whose name proves its content
checkpoint_writer.py  the thread that writes it
goodput.py     what a run counts over all its attempts: time, interruptions, which attempts made its steps
"""
