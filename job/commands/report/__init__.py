"""report.html: what a run came to, on one page for people.

page.py       the page, from its headline to its last line; written to a local file
facts.py      what it says, read from the store
gate.py       the verdict, and the gate's numbers in words
results.py    epochs, classes, confusion, mistakes
origin.py     time, changed settings, commands, what the run was made of
charts.py     lines over the epochs, with axes
elements.py   the tree of elements that a page is, its style, numbers as people read them
"""

from job.commands.report.page import make_report, report_on, write_report

__all__ = ["make_report", "report_on", "write_report"]
