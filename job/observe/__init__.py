"""What people and machines see of a run while it goes on.

view.py         what training tells: to the bar, the metrics and the termination message
phases.py       where the wall time goes
progress.py     the bar on a terminal
metrics.py      the series for Prometheus; exposition.py: how they leave the process
termination.py  the termination message
stored_logs.py  log lines that outlive the pod
"""
