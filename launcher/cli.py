"""`launch`: the command line. It imports what a command needs when that command runs, and never torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

TYPE_CHECKING = False  # as in the package's own module
if TYPE_CHECKING:
    from typing import NoReturn

EPILOG = """\
commands:
  launch RECIPE [KEY=VALUE ...]        train; --name of an earlier run resumes it
  launch resume RUN [KEY=VALUE ...]    carry on at the newest intact checkpoint
  launch rehearse RECIPE               interrupt it here first, resume it, prove that nothing was lost
  launch RECIPE --sweep KEY=A,B        a group of runs; also with --seeds N
  launch status RUN|GROUP              state, step and attempts
  launch logs RUN [-f]                 what a rank prints
  launch cancel RUN|GROUP              save, stop, and do not start again
  launch show RECIPE [KEY=VALUE ...]   the resolved recipe as YAML, with the origin of each value
  launch ls                            the recipes that ship, and the runs here
  launch checkpoints ls|verify|digest|pin|unpin|export RUN

exit codes: 0 done, 1 failed, 2 usage, 3 refused by the target, or does not fit, 4 no intact checkpoint,
            75 stopped and resumable, 93 do not requeue
"""

COMMANDS = {
    "train": "launcher.commands.start:train",
    "resume": "launcher.commands.start:resume",
    "rehearse": "launcher.commands.rehearse:rehearse",
    "show": "launcher.commands.show:show",
    "ls": "launcher.commands.show:ls",
    "status": "launcher.commands.status:status",
    "logs": "launcher.commands.logs:logs",
    "cancel": "launcher.commands.cancel:cancel",
    "checkpoints": "launcher.commands.checkpoints:checkpoints",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that names the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        from launcher.errors import UsageError

        raise UsageError(f"{message}; see {self.prog} --help")


class _Once(argparse.Action):
    """Store the value of a flag. Of two values one would be dropped unseen."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", {})
        if option_string and self.dest in given:
            raise argparse.ArgumentError(self, f"it is given twice: {given[self.dest]} and {values}; give it once")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the answer is its exit code. Errors for people are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    from checkpoints.errors import CheckpointError
    from cluster.errors import ClusterError
    from launcher.errors import LaunchError
    from launcher.terminal import complain

    try:
        return _dispatch(words)
    except (LaunchError, ClusterError, CheckpointError) as error:
        complain(f"launch: {error}")
        return int(getattr(error, "exit_code", 1))
    except BrokenPipeError:
        return 0
    except PermissionError as error:
        complain(f"launch: {error.filename}: {error.strerror}; make it yours to use, or use another")
        return 2
    except OSError as error:
        complain(f"launch: {error.filename or 'the storage'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        complain("launch: interrupted before the run started")
        return 130


def parse_words(words: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """(command, its arguments). Raises UsageError for what is not a command line."""
    is_named = bool(words) and words[0] in COMMANDS
    command, rest = (words[0], words[1:]) if is_named else ("train", words)
    parser = _parser(command)
    if not is_named and words:
        _refuse_misspelt_command(words[0])
    known, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        _refuse_unknown(unknown[0], parser)
    return command, known


def _dispatch(words: Sequence[str]) -> int:
    if not words:
        _parser("train").print_help()
        return 0
    command, arguments = parse_words(words)
    module, _, function = COMMANDS[command].partition(":")
    return int(getattr(import_module(module), function)(arguments))


def _refuse_misspelt_command(word: str) -> None:
    """Anything may be a recipe's name; a word that is nearly a command, and nothing that exists, is not."""
    if not word.isalpha() or os.path.exists(word):
        return
    from difflib import get_close_matches

    from launcher.errors import UsageError

    if nearest := get_close_matches(word, COMMANDS, n=1, cutoff=0.75):
        raise UsageError(f"{word} is no command and no recipe; did you mean {nearest[0]}?")


def _refuse_unknown(flag: str, parser: argparse.ArgumentParser) -> NoReturn:
    from difflib import get_close_matches

    from launcher.errors import UsageError

    known = [option for action in parser._actions for option in action.option_strings]
    nearest = get_close_matches(flag.split("=")[0], known, n=1)
    kind = "flag" if flag.startswith("-") else "argument"
    hint = f"did you mean {nearest[0]}?" if nearest else f"see {parser.prog} --help"
    raise UsageError(f"unknown {kind} {flag}; {hint}")


def _parser(command: str) -> argparse.ArgumentParser:
    summary = "train" if command == "train" else command
    parser = _Parser(
        prog="launch" if command == "train" else f"launch {command}",
        description=None if command == "train" else f"launch {summary}",
        epilog=EPILOG if command == "train" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("action", None, _Once)
    _ARGUMENTS[command](parser)
    return parser


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", metavar="PATH", help="where runs are kept (default: $LAUNCH_RUNS_DIR or ./runs)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable, on stdout")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on",
        metavar="TARGET",
        help="where to run: local, slurm, spot, kubernetes, sky, torchx:SCHEDULER, or NAME for profiles/NAME.yaml "
        "(default: slurm for several nodes, if there is one, else local)",
    )
    parser.add_argument("--nodes", "--nnodes", type=_positive, metavar="N", help="machines (default 1)")
    parser.add_argument(
        "--gpus",
        "--nproc-per-node",
        type=_positive,
        metavar="N",
        help="ranks per node: one per GPU, or CPU ranks where there is none",
    )
    _add_runs_dir(parser)
    parser.add_argument(
        "--hang-seconds",
        default=20,
        type=_seconds,
        metavar="N",
        help="end and restart ranks after so long without progress, at the earliest (default 20; 0: never)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=_seconds,
        metavar="N",
        help="how long after a stop signal the run is ended by force; it is gone before that (default: never)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show exactly what would be executed, and make nothing")
    parser.add_argument("--bundle", metavar="DIR", help="with --dry-run or --plan: write all that into this new folder")
    _add_preflight(parser)
    _add_spot(parser)
    parser.add_argument("--takeover", action="store_true", help="take a run from an owner that looks alive")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="resume although FIELD changed since the run started",
    )


def _add_spot(parser: argparse.ArgumentParser) -> None:
    """How machines of `--on spot` are taken away, where no cloud does it."""
    parser.add_argument("--spot-seed", type=_count, metavar="N", help="take machines away at random, by this seed")
    parser.add_argument(
        "--spot-mean-seconds", type=_positive, metavar="S", help="the time between that, on average (default 60)"
    )
    parser.add_argument("--spot-trace", metavar="FILE", help="take machines away when this file says so")


def _add_preflight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu", metavar="NAME", help="the kind of GPU it runs on, such as h100 (default: this machine's)"
    )
    parser.add_argument("--gpu-memory", type=_gigabytes, metavar="GB", help="the same, by its size alone")
    parser.add_argument(
        "--mtbf-hours",
        type=_hours,
        metavar="H",
        help="a node is interrupted without notice every H hours on average: for checkpoint.every=auto and --plan",
    )
    parser.add_argument("--force", action="store_true", help="start although it would not fit into the GPU's memory")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", action="store_true", help="show memory, time and checkpoints on --nodes x --gpus, and do nothing"
    )
    parser.add_argument("--trace", action="store_true", help="with --plan: trace a step of the model, too")
    dry = "with --plan or --dry-run"
    parser.add_argument("--mfu", type=_share, metavar="SHARE", help=f"{dry}: the share of a GPU's peak that is used")
    parser.add_argument("--store-speed", type=_gigabytes, metavar="GB", help=f"{dry}: GB/s that storage takes")
    parser.add_argument("--prices", metavar="FILE", help=f"{dry}: prices of your own, as the table that ships has")
    _add_json(parser)


def _add_laptop(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--laptop",
        action="store_true",
        default=None,
        help="use the recipe's laptop overrides (default where there is no GPU)",
    )
    group.add_argument("--no-laptop", dest="laptop", action="store_false", help="use the recipe as it is")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe file, file.py:NAME, a shipped name, or YAML from `launch show`")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe, such as optimizer.lr=1e-4"
    )


def _train(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_place(parser)
    _add_plan(parser)
    _add_laptop(parser)
    parser.add_argument(
        "--name", metavar="RUN", help="the run's name; an existing one is resumed (default: made from the recipe's)"
    )
    parser.add_argument(
        "--checkpoints",
        metavar="URL",
        help="where a new run keeps its checkpoints: a bucket, as s3://BUCKET/PREFIX, gs://... or az://..., or a "
        "folder (default: in the run folder)",
    )
    parser.add_argument(
        "--no-steps",
        action="store_true",
        help="with --dry-run: do without the trace and the few real steps, which take it a minute",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a run for each value, named NAME-0, NAME-1, ...; several sweeps give all combinations",
    )
    parser.add_argument(
        "--seeds", type=_positive, metavar="N", help="a run for each of N seeds, from the recipe's seed on"
    )


def _resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's name or folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change; most need --allow-change"
    )
    _add_place(parser)
    _add_json(parser)


def _rehearse(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--on",
        metavar="TARGET",
        help="interrupt as this target does: local, slurm, spot, or NAME for profiles/NAME.yaml (default: that of a "
        "launch)",
    )
    parser.add_argument("--nodes", "--nnodes", type=_positive, metavar="N", help="of that launch (default 1)")
    parser.add_argument("--seed", default=1, type=_count, metavar="N", help="of the moments (default 1)")
    parser.add_argument("--keep", action="store_true", help="keep the runs, also when nothing differs")
    _add_json(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_laptop(parser)
    _add_json(parser)


def _ls(parser: argparse.ArgumentParser) -> None:
    _add_runs_dir(parser)
    _add_json(parser)


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the name or folder of a run, or of a group")
    parser.add_argument("--prices", metavar="FILE", help="prices of your own, as the table that ships has")
    _add_runs_dir(parser)
    _add_json(parser)


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's name or folder")
    parser.add_argument("--rank", default=0, type=_count, metavar="R", help="the log of this rank (default 0)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run has ended")
    _add_runs_dir(parser)


def _cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the name or folder of a run, or of a group")
    _add_runs_dir(parser)


def _checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["ls", "verify", "digest", "pin", "unpin", "export"])
    parser.add_argument("run", help="a run's name or folder")
    parser.add_argument("destination", nargs="?", help="export: the folder to make")
    parser.add_argument("--step", type=_positive, metavar="N", help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--merged", action="store_true", help="export: base and adapter as one model")
    _add_runs_dir(parser)
    _add_json(parser)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 1000000")
    return int(text)


def _number(most: float, kind: str) -> Callable[[str], float]:
    """Reads a decimal number above 0."""

    def read(text: str) -> float:
        if not text.isascii() or not text.replace(".", "", 1).isdecimal() or not 0 < float(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {kind}")
        return float(text)

    return read


_gigabytes = _number(10_000, "a number of GB above 0, up to 10000")
_hours = _number(1_000_000, "a number of hours above 0, up to 1000000")
_share = _number(1, "a share between 0 and 1")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 1000000")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of seconds from 0 to 1000000")
    return int(text)


_ARGUMENTS = {
    "train": _train,
    "resume": _resume,
    "rehearse": _rehearse,
    "show": _show,
    "ls": _ls,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "checkpoints": _checkpoints,
}
