"""What a person types, and what it prints.

cli.py        subcommands and their options; standard library only
dispatch.py   which function a subcommand is
lookup.py     the store and the run that a command names
run.py        run: sets up what an attempt is given from outside, says how it ended; summary.py, what it prints at the end
runs.py       runs, report; report/: the page of a run; index.py, index_page.py: the page of a model
logs.py       logs
show.py       show: one run, as a page of text or as JSON
champion.py   promote, rollback, fetch
verify.py     verify
reproduce.py  reproduce
data.py       data prepare, data check
store.py      store check, gc
settings.py   config show, config schema
"""
