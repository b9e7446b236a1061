"""Make the runs of the declared studies, choose hyperparameters between them, and stop comparisons that are decided.

    python -m experiments.study run                  # all studies, two runs at a time
    python -m experiments.study run llm asr --jobs 1 --minutes 50
    python -m experiments.study status               # what is published, done here, due, and the hours left
    python -m experiments.study status llm           # what of each of its stages is done, due and to come
    python -m experiments.study plan llm             # every run that is due, as commands
    python -m experiments.study tuned                # write what was chosen into configs/tuned
    python -m experiments.study choose llm_gpu       # choose from the runs of `make tune-llm SCALE=gpu`
    python -m experiments.study publish              # copy finished records into results/runs
    python -m experiments.study own examples/own_task/textures.yaml    # the same on a task of your own

Each run is `python -m experiments.train` with the words that `plan` prints. A run that has a record is not repeated; an
interrupted run goes on. A run that fails is tried once more after the others, and then named. Ctrl-C stops everything;
the same command goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.comparisons import decider
from experiments.core.errors import UserError
from experiments.core.files import runs_dir
from experiments.core.plan import Planner, plan_all, wanted
from experiments.core.protocol import names, protocol
from experiments.core.records import Records, one_line_warnings
from experiments.core.stopping import INTERRUPTED
from experiments.study.choose import choose_experiment, write_tuned
from experiments.study.publish import publish
from experiments.study.runs import run_all
from experiments.study.status import said


def planners(studies: Sequence[str], results: Records) -> list[Planner]:
    """A planner for each study. Families of comparisons reach over all declared studies, not only over `studies`."""
    everything = {name: protocol(name) for name in dict.fromkeys([*names(), *studies])}
    decided = decider(list(everything.values()), results)
    return [Planner(everything[name], results, decided) for name in studies]


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["own"]:
        from experiments.own import compare

        return compare.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m experiments.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("run", "status", "plan", "tuned", "choose", "publish"))
    parser.add_argument("studies", nargs="*", help=f"default: all, {', '.join(names())}; choose: experiments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--minutes", type=float, help="start no run after so many minutes")
    parser.add_argument("--runs", type=Path, default=runs_dir(), help="this machine's records (default: %(default)s)")
    parser.add_argument("--published", type=Path, default=Path("results/runs"), help="default: results/runs")
    parser.add_argument(
        "--set", nargs="+", default=[], dest="words", metavar="key=value", help="Hydra overrides for every run"
    )
    options = parser.parse_intermixed_args(argv)
    if options.command == "choose" and not options.studies:
        parser.error("choose needs an experiment, such as llm_gpu")
    named, options.studies = bool(options.studies), options.studies or names()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    results = Records([options.runs, options.published])
    one_line_warnings()
    try:
        if options.command == "run":
            found = planners(options.studies, results)
            return run_all(found, results, options.runs, options.words, options.jobs, options.minutes)
        if options.command == "choose":
            for experiment in options.studies:
                print("\n".join(choose_experiment(experiment, options.runs)))
            return 0
        found = planners(options.studies, results)
        if options.command == "status":
            width = shutil.get_terminal_size().columns
            print(said(plan_all(found), results, options.jobs, width, options.published, details=named))
        elif options.command == "publish":
            published = publish(plan_all(found), [protocol(name) for name in names()], options.runs, options.published)
            for line in published.refused:
                print(f"refused: {line}", file=sys.stderr)
            counted = f"{published.copied} records published, {published.kept} were there"
            print(f"{counted}, {len(published.refused)} refused")
        elif options.command == "tuned":
            for path in write_tuned(found):
                print(f"wrote {path}")
        else:
            for run in wanted(plan_all(found), results):
                print(shlex.join(["python", "-m", "experiments.train", *run.words]))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, such as `head`. The interpreter would flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
