"""Whole objects under keys, in a folder or in object storage. Knows nothing about runs.

store.py    `Store`: the verbs that everybody else uses; retries and the deadline
open.py     opens the store that a URI names
faults.py   the table: errno, status, code and cause of a fault -> may pass or not, exit code, what to do
backend.py  what sends one request; the crash points around every change
folder.py   `file:`, our own, with fsync: obstore's local store never fsyncs
cloud.py    `s3:`, `gs:` and `az:` through obstore
"""
