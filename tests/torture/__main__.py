"""`python -m tests.torture`: runs campaigns, prints one line a trial and a closing table; exit 1 when a promise was broken."""

import argparse
import importlib
import os
import sys
import time

from tests.torture.campaign import Campaign, Finished, broken_limits, run_campaign, table
from tests.torture.planted import ENVIRONMENT, PLANTED

MODULES = (
    "champions",
    "corruption",
    "counters",
    "disks",
    "kills",
    "power",
    "processes",
    "protocol",
    "rivals",
    "stores",
    "workers",
)


def all_campaigns() -> list[Campaign]:
    """Every campaign, by its number."""
    found = [c for name in MODULES for c in importlib.import_module(f"tests.torture.{name}").CAMPAIGNS]
    return sorted(found, key=lambda campaign: int(campaign.name[1:]))


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short version: a few minutes")
    names = [campaign.name for campaign in all_campaigns()]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="such as R3; may be given again")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="of each campaign; an enumeration takes every n-th point"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed, other trials (1)")
    parser.add_argument("--trial", type=int, metavar="INDEX", help="only this one: replays a failure")
    parser.add_argument(
        "--first", type=int, default=0, metavar="INDEX", help="go on with a long campaign from there (0)"
    )
    parser.add_argument(
        "--patience", type=float, default=1, metavar="TIMES", help="of each promised time, beside other work (1)"
    )
    parser.add_argument("--workers", type=int, default=2, help="trials at a time (2)")
    parser.add_argument(
        "--plant",
        choices=list(PLANTED),
        help="put this bug into the program; a campaign has to find it, and ends there",
    )
    parser.add_argument("--list", action="store_true", help="print the campaigns and, for enumerations, their points")
    options = parser.parse_args()
    if options.plant:
        os.environ[ENVIRONMENT] = options.plant
    campaigns = [c for c in all_campaigns() if not options.only or c.name in options.only]
    if options.list:
        _print_list(campaigns)
        return 0
    rows: list[tuple[Campaign, list[Finished]]] = []
    broken = 0
    for campaign in campaigns:
        finished = []
        for trial in run_campaign(
            campaign, seed=options.seed, indices=_indices(campaign, options), num_workers=options.workers
        ):
            finished.append(trial)
            say = "held" if trial.error is None else f"BROKEN: {trial.error}"
            print(
                f"{campaign.name} seed {options.seed} trial {trial.index}: {say}; {trial.note}; {trial.seconds:.2f} s",
                flush=True,
            )
            if options.plant and trial.error is not None:
                break
        rows.append((campaign, finished))
        broken += sum(trial.error is not None for trial in finished)
        for text in broken_limits(campaign, finished, patience=options.patience):
            broken += 1
            print(f"{campaign.name}: BROKEN: {text}")
    if not any(finished for _, finished in rows):
        parser.error("no trial is left to run; --first must be below --trials")
    today = time.strftime("%Y-%m-%d")
    print(f"\n{today}, seed {options.seed}\n{table(rows)}")
    print(f"scripts/torture: {'every promise held' if not broken else f'{broken} BROKEN'}")
    return 1 if broken else 0


def _indices(campaign: Campaign, options: argparse.Namespace) -> list[int]:
    if options.trial is not None:
        return [options.trial]
    wanted = options.trials or (campaign.num_quick if options.quick else campaign.num_full)
    if campaign.count is None:
        return list(range(options.first, wanted))
    total = campaign.count()
    wanted = min(wanted or total, total)
    # Spread over the whole run, and shifted by the seed: short versions with other seeds visit other points.
    return sorted({(index * total // wanted + options.seed) % total for index in range(wanted)})


def _print_list(campaigns: list[Campaign]) -> None:
    for campaign in campaigns:
        print(f"{campaign.name}: {campaign.promise}")
        if campaign.name == "R2":
            from tests.torture.kills import points

            for point in points():
                print(f"  {point}")


if __name__ == "__main__":
    sys.exit(main())
