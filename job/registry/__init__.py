"""Which committed run is served, `models/<name>/` in the store, and what is kept.

rules.py     the gate's rules: a pure decision
comparison.py what the gate measures: a candidate beside the champion and the best so far
significance.py exact and permutation tests: how probable a loss is when nothing is worse
gate.py      the gate's way through the store, from a COMMIT to a decision that is recorded
champion.py  moves: numbered create-only records; the newest says who is champion
serving.py   TensorFlow Serving's layout; the file that makes a version loadable is written last
fetch.py     the champion in a local folder, by one rename
retention.py what is kept after a committed run
unchanged.py whether the champion is what would be trained again
garbage.py   what `gc` finds and deletes
"""
