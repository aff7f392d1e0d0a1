"""The command line: parses, hands over, turns refusals into one sentence and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prunebench.experiments.shorthands import MODEL_OPTIONS, PLACES

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130

VERBS: dict[str, tuple[str, str]] = {
    "run": ("run every cell of a grid that isn't done, then build the page", "run --config configs/demo.yaml"),
    "plan": ("list the cells with an estimate of time and memory; touches nothing", "plan --config configs/demo.yaml"),
    "status": ("say which cells are done, running, failed (with reason) or left", "status --config configs/demo.yaml"),
    "report": ("build the page from the records of an output folder", "report --out results/demo"),
    "prune": (
        "the first half of the cells: prune, slice, recover; leaves checkpoints for `evaluate`",
        "prune --method magnitude --sparsity 0.2 --out results/mine",
    ),
    "evaluate": (
        "the second half of the cells; or, with --model, score any checkpoint and print a table",
        "evaluate --model results/mine/cells/ID/checkpoint --protocol commonsense_llm_pruner --limit 100",
    ),
    "export": ("copy the pruned checkpoint of one cell out of the results", "export --config configs/demo.yaml --only 3fa9 --to my-model"),
    "conformance": ("check a pruner (a file or a name) against the promises that all keep", "conformance my_pruner.py"),
    "validate": ("check config, plugins and names; run nothing", "validate --config configs/demo.yaml --plugin my_pruner.py"),
    "clean": ("delete what killed runs left, and set-aside files", "clean --config configs/demo.yaml"),
}

EPILOG = "exit codes: 0 all done, 1 some cell failed (the page says which and why), 2 bad input, 130 stopped by the user"


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one sentence."""

    def error(self, message: str) -> NoReturn:
        from prunebench.experiments.suggest import did_you_mean

        word = message.rpartition(": ")[2].split(" ")[0].strip("'\"")
        hint = did_you_mean(word, [*VERBS, *self._option_string_actions]) if "unrecognized" in message else ""
        print(f"error: {message}.{hint} See {self.prog} --help.", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


class Once(argparse.Action):
    """Stores a value, and refuses another one for the same option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        if before is not None and before != values:
            parser.error(f"{option_string} is given twice, as {before} and {values}; give it once")
        setattr(namespace, self.dest, values)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="run_all.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = "prunebench: one YAML grid in, every record and the leaderboard out. Without a verb: run."
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, (text, example) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text, epilog=f"example: python run_all.py {example}\n{EPILOG}")
        verb.formatter_class = argparse.RawDescriptionHelpFormatter
        _add_options(verb, name)
    return parser


def _add_options(verb: argparse.ArgumentParser, name: str) -> None:
    if name == "conformance":
        verb.add_argument("pruner", help="a .py file that registers pruners, or the name of a known one")
        verb.add_argument("--plugin", action="append", default=[], type=Path, metavar="FILE", help="load another pruner file first")
        verb.add_argument("--family", action="append", default=[], metavar="NAME", help="check on this architecture only (repeatable)")
        return
    verb.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: results/<name of the grid>)")
    verb.add_argument("--config", type=Path, metavar="FILE", help="the grid, a YAML file")
    verb.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="overlay settings, e.g. grid.seed=[0,1]",
    )
    verb.add_argument("--plugin", action="extend", nargs="+", default=[], type=Path, metavar="FILE", help=".py files that register pruners")
    if name == "report":
        return
    verb.add_argument("--data", type=Path, metavar="DIR", help="folder of benchmark data as JSONL, tried before hub and embedded data")
    verb.add_argument("--only", action="append", default=[], metavar="ID", help="only the cell whose id starts so (repeatable)")
    axes = verb.add_argument_group("shorthands for one value of the grid")
    axes.add_argument("--model", metavar="NAME", help="hub id, folder, .gguf file or embedded:NAME", action=Once)
    axes.add_argument("--method", metavar="NAME", action=Once)
    axes.add_argument("--sparsity", type=float, metavar="S", help="share of parameters to remove, between 0 and 1", action=Once)
    axes.add_argument("--seed", type=int, metavar="N", action=Once)
    axes.add_argument("--protocol", action="extend", nargs="+", default=[], metavar="NAME", help="evaluation protocols")
    axes.add_argument("--limit", type=int, metavar="N", help="documents a task", action=Once)
    loading = verb.add_argument_group("how the model is loaded")
    loading.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as it is stored", action=Once)
    loading.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ...", action=Once)
    loading.add_argument("--device-map", metavar="MAP", help="accelerate's, e.g. auto, for a model larger than one device", action=Once)
    loading.add_argument("--revision", metavar="REV", help="hub branch, tag or commit", action=Once)
    loading.add_argument("--trust-remote-code", action="store_true", default=None, help="run modelling code that comes with the checkpoint")
    loading.add_argument("--attn-implementation", metavar="NAME", help="default: the fastest that the model supports", action=Once)
    if name in ("run", "prune", "evaluate"):
        verb.add_argument("--executor", choices=["local", "processes", "ray"], help="here, one process a cell, or Ray tasks")
        verb.add_argument("--workers", type=int, metavar="N", help="cells at a time (executor processes)")
        verb.add_argument("--address", metavar="HOST:PORT", help="Ray cluster to join, or auto")
        verb.add_argument("--plain", action="store_true", help="plain lines even in a terminal")
        verb.add_argument("--no-retry", action="store_true", help="leave cells that failed before as they are")
    if name == "run":
        verb.add_argument("--no-report", action="store_true", help="don't build the page at the end")
    if name == "export":
        verb.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder for the checkpoint")
    if name == "clean":
        verb.add_argument("--checkpoints", action="store_true", help="also delete the checkpoints of cells that have their record")
        verb.add_argument("--all", action="store_true", dest="everything", help="delete the cells of this grid altogether")


def shorthands(options: argparse.Namespace) -> dict[str, Any]:
    """The shorthands of a command line that were given; see `load_config`."""
    return {name: value for name in (*PLACES, *MODEL_OPTIONS) if (value := getattr(options, name, None)) not in (None, [])}


def reproducing_command(options: argparse.Namespace) -> str:
    """What gives these cells again: the grid, the settings and the plugins, without where the results go."""
    words = ["python", "run_all.py", "run"]
    if options.config is not None:
        words += ["--config", str(options.config)]
    if options.data is not None:
        words += ["--data", str(options.data)]
    for setting in options.settings:
        if not setting.startswith("run."):
            words += ["--set", setting]
    for name, value in shorthands(options).items():
        if PLACES.get(name, ("",))[0] != "run":
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(one) for one in value] if isinstance(value, list) else [str(value)]
    for plugin in options.plugin:
        words += ["--plugin", str(plugin)]
    return shlex.join(words)


def main(argv: Sequence[str] | None, build_report: Callable[[Path], Path]) -> int:
    """Runs one command line; returns the exit code. `build_report` makes the page of an output folder."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0] not in VERBS and arguments[0] not in ("-h", "--help")):
        if arguments and not arguments[0].startswith("-"):
            from prunebench.experiments.suggest import did_you_mean

            print(f"error: unknown verb {arguments[0]!r}.{did_you_mean(arguments[0], VERBS)} Known: {', '.join(VERBS)}.", file=sys.stderr)
            return EXIT_BAD_INPUT
        arguments.insert(0, "run")
    options = build_parser().parse_args(arguments)
    options.build_report = build_report
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("prunebench.experiments").setLevel(logging.INFO)
    logging.getLogger("prunebench.models").setLevel(logging.INFO)
    quiet_libraries()
    return _guarded(options)


def quiet_libraries() -> None:
    """Other libraries' progress bars would tear the view apart."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    transformers.logging.disable_progress_bar()


def _guarded(options: argparse.Namespace) -> int:
    from prunebench.leaderboard.errors import LeaderboardError
    from prunebench.models.errors import BadInput, PrunebenchError

    try:
        from prunebench.experiments import verbs

        act: Any = getattr(verbs, options.verb)
        return int(act(options))
    except (BadInput, LeaderboardError, PrunebenchError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; nothing that was finished is lost, the same command goes on.", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
