"""The command line: one file a verb. `main` parses, hands over, and turns refusals into one sentence and an exit code."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from prunebench.experiments.commands.arguments import normalised
from prunebench.experiments.commands.clean import clean
from prunebench.experiments.commands.conformance import conformance
from prunebench.experiments.commands.evaluate import evaluate
from prunebench.experiments.commands.export import export
from prunebench.experiments.commands.options import with_options
from prunebench.experiments.commands.plan import plan
from prunebench.experiments.commands.prune import prune
from prunebench.experiments.commands.report import report
from prunebench.experiments.commands.run import run
from prunebench.experiments.commands.status import status
from prunebench.experiments.commands.validate import validate

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130

VERBS: dict[str, tuple[Callable[..., int], str]] = {
    "run": (run, "run --config configs/demo.yaml"),
    "plan": (plan, "plan --config configs/demo.yaml"),
    "status": (status, "status --config configs/demo.yaml"),
    "report": (report, "report --out results/demo"),
    "prune": (prune, "prune --method magnitude --sparsity 0.2 --out results/mine"),
    "evaluate": (evaluate, "evaluate --model results/mine/cells/ID/checkpoint --protocol commonsense_llm_pruner --limit 100"),
    "export": (export, "export --config configs/demo.yaml --only 3fa9 --to my-model"),
    "conformance": (conformance, "conformance my_pruner.py"),
    "validate": (validate, "validate --config configs/demo.yaml --plugin my_pruner.py"),
    "clean": (clean, "clean --config configs/demo.yaml"),
}
"""Each verb with an example."""

EPILOG = "exit codes: 0 all done, 1 some cell failed (the page says which and why), 2 bad input, 130 stopped by the user"
GLOBAL_OPTIONS = ("-h", "--help", "--install-completion", "--show-completion")


def build_app() -> typer.Typer:
    """The verbs with their options."""
    app = typer.Typer(
        help="prunebench: one YAML grid in, every record and the leaderboard out. Without a verb: run.",
        epilog=EPILOG,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=False,
    )
    for name, (act, example) in VERBS.items():
        app.command(name, epilog=f"example: python run_all.py {example}\n\n{EPILOG}")(with_options(_returning(act, name)))
    return app


def main(argv: Sequence[str] | None, build_report: Callable[[Path], Path]) -> int:
    """Runs one command line; returns the exit code.

    Args:
        argv: without the program's name; None takes the process's own.
        build_report: makes the page of an output folder.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0] not in VERBS and arguments[0] not in GLOBAL_OPTIONS):
        if arguments and not arguments[0].startswith("-"):
            from prunebench.models.suggest import did_you_mean

            return refuse(f"unknown verb {arguments[0]!r}.{did_you_mean(arguments[0], VERBS)} Known: {', '.join(VERBS)}.")
        arguments.insert(0, "run")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("prunebench.experiments").setLevel(logging.INFO)
    logging.getLogger("prunebench.models").setLevel(logging.INFO)
    return _guarded(arguments, build_report)


def _guarded(arguments: list[str], build_report: Callable[[Path], Path]) -> int:
    from prunebench.leaderboard.errors import LeaderboardError
    from prunebench.models.errors import PrunebenchError, text_of

    try:
        code = build_app()(args=normalised(arguments), prog_name=_program(), standalone_mode=False, obj=build_report)
    except (PrunebenchError, LeaderboardError) as error:
        return refuse(" ".join(text_of(error).split()))
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; nothing that was finished is lost, the same command goes on.", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # a reader left before all was written
        return EXIT_FAILED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer's answer to the same
            return EXIT_FAILED
        raise
    except Exception as error:
        message = getattr(error, "format_message", None)  # what typer's parser says of an option
        if message is None:
            raise
        return refuse(f"{' '.join(message().split()).rstrip('.')}. See run_all.py {arguments[0]} --help.")
    return int(code or 0)


def _returning(act: Callable[..., int], verb: str) -> Callable[..., int]:
    """The same verb, which nothing but Ctrl-C ends in its middle: a plugin that leaves by sys.exit() or by typer's own is refused."""

    @functools.wraps(act)
    def whole(*arguments: Any, **values: Any) -> int:
        from prunebench.models.errors import BadInput, deed

        try:
            return act(*arguments, **values)
        except (SystemExit, GeneratorExit, typer.Exit, typer.Abort) as error:
            raise BadInput(f"the code of a plugin or of a library {deed(error)} in the middle of {verb}; take that out.") from error

    return whole


def _program() -> str:
    name = Path(sys.argv[0]).name
    return name if name == "prunebench" else "run_all.py"


def refuse(sentence: str) -> int:
    """Says why the command line can't be followed; returns the exit code for it."""
    print(f"error: {sentence}", file=sys.stderr)
    return EXIT_BAD_INPUT
