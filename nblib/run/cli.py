"""The command line: python -m nblib run | record | list."""

import argparse
import os
import signal
import sys
from pathlib import Path

from nblib.files import ROOT
from nblib.run import record, report, runner
from nblib.run.keys import cell_defaults
from nblib.run.layers import BadRequest, Project, relative
from nblib.run.lock import Locked
from nblib.run.progress import clock

EXAMPLES = """examples:
  python -m nblib run                                   profile quick: all notebooks, done ones are skipped
  python -m nblib run --dry-run                         what would run, and why
  python -m nblib run --only 04_finetune                one notebook; its inputs must be there
  python -m nblib run --from 03 --force                 03 and what follows, even if done
  python -m nblib run -p seed=7 -p 04.num_steps=900     seed wherever there is one, num_steps of 04 only
  python -m nblib run --profile beir13 -p datasets='["nfcorpus", "path/to/set"]' -p model=MODEL -p idf=IDF
  python -m nblib run --profile quick,mine              params/mine/*.yaml over params/quick/*.yaml

Values come from the notebook's parameters cell, then params/<profile>/<notebook>.yaml, then -p.
A run that was stopped goes on with the same command. Exit code: 0 done, 1 a step failed,
2 the request was refused before anything started, 130 interrupted."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: as Ctrl-C, so that the kernel ends with the runner."""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    top = argparse.ArgumentParser(
        prog="python -m nblib",
        description="Train and evaluate learned sparse retrievers by running the notebooks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="run | record | list")
    run = commands.add_parser(
        "run",
        help="run the notebooks of a profile",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("--profile", default="quick", help="folder of params/, or several: left < right (quick)")
    run.add_argument("--only", default="", metavar="NN", help="one notebook, by number or name")
    run.add_argument("--from", default="", metavar="NN", dest="start", help="this notebook and what follows")
    run.add_argument("--force", action="store_true", help="run the selected notebooks even if they are done")
    run.add_argument("--dry-run", action="store_true", help="say what would run and why; start nothing")
    run.add_argument(
        "-p", action="append", default=[], metavar="[NN.]key=value", help="set a parameter (YAML)"
    )
    run.add_argument("--outputs", default=ROOT / "outputs", type=Path, help="where results go (outputs/)")
    keep = commands.add_parser(
        "record", help="copy a finished run's figures into outputs/reference and its tables into README.md"
    )
    keep.add_argument("--profile", default="quick", help="the profile that was run (quick)")
    keep.add_argument("--outputs", default=ROOT / "outputs", type=Path, help="where it was run (outputs/)")
    listing = commands.add_parser("list", help="show profiles, notebooks and their parameters")
    listing.add_argument("notebook", nargs="?", default="", help="number or name; all without it")
    return top


def main(argv: list[str] | None = None, project: Project | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(argv)
    project = project or Project()
    ends = [
        n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN
    ]  # as nohup set it
    before = {number: signal.signal(number, _terminate) for number in ends}
    try:
        return {"run": _run, "record": _record, "list": _list}[options.command](options, project)
    except (BadRequest, Locked) as error:
        print(f"refused: {error}".replace("\n", "\nrefused: "), file=sys.stderr)
        return 2
    except runner.StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except OSError as error:  # such as a full disk
        print(f"stopped: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _run(options: argparse.Namespace, project: Project) -> int:
    request = runner.Request(
        profiles=[name.strip() for name in options.profile.split(",")],
        overrides=options.p,
        only=options.only,
        start=options.start,
        force=options.force,
        outputs=Path(os.path.abspath(options.outputs.expanduser())),
    )
    if options.dry_run:
        runner.dry_run(project, request)
        return 0
    summary = runner.run(project, request)
    if table := report.results_table(request.folder):
        print(f"\n{table}")
    if missing := report.missing_sets(request.folder):
        print(f"\n{missing}", file=sys.stderr)
    print(f"\n{clock(summary.wall_s)}, peak memory {summary.peak_gib:.2f} GiB with the runner")
    print(f"report: {relative(summary.index)}")
    return 0


def _record(options: argparse.Namespace, project: Project) -> int:
    print(f"recorded in {relative(record.main(options.profile, options.outputs))} and README.md")
    return 0


def _list(options: argparse.Namespace, project: Project) -> int:
    return show(project, options.notebook)


def show(project: Project, notebook: str) -> int:
    """Print profiles, notebooks, and the defaults of their parameters with what each profile changes."""
    from nblib.run.layers import pick, read_layer

    print("profiles:", ", ".join(project.profiles()) or "none")
    names = project.names()
    for name in [pick(names, notebook)] if notebook else names:
        print(f"\n{name}")
        layers = {p: project.params / p / f"{name}.yaml" for p in project.profiles()}
        values = {p: read_layer(path) for p, path in layers.items() if path.exists()}
        for key, default in cell_defaults(project.notebooks / f"{name}.ipynb").items():
            changed = [f"{p}: {layer[key][0]}" for p, layer in values.items() if key in layer]
            print(f"  {key:<28} {default!r}" + (f"   ({', '.join(changed)})" if changed else ""))
    return 0
