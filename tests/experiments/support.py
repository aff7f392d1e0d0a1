"""A tiny model folder, a few passages and a config, so that a whole cell takes a second; and what 'the same records' means."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prunebench.experiments.executors.processes import forked
from prunebench.models.tiny import tiny_model
from prunebench.run_all import main

ROOT = Path(__file__).resolve().parents[2]

PASSAGES = [
    f"The {animal} went over the {place} and met a {other} there; neither of them had seen the {thing} before that {day}."
    for animal, place, other, thing, day in (
        ("fox", "hill", "hare", "river", "morning"),
        ("goat", "bridge", "wolf", "meadow", "night"),
        ("owl", "barn", "mouse", "moon", "evening"),
        ("bear", "ridge", "bee", "honey", "summer"),
        ("crow", "field", "farmer", "scarecrow", "autumn"),
        ("seal", "bay", "gull", "ice", "winter"),
    )
]
QUESTIONS = [
    {"goal": f"How do you {verb} a {thing}?", "sol1": f"Use a {tool}.", "sol2": "Sing to it.", "label": index % 2}
    for index, (verb, thing, tool) in enumerate(
        (("cut", "rope", "knife"), ("open", "can", "tin opener"), ("dry", "plate", "towel"), ("fix", "chair", "hammer"))
    )
]


def save_tiny_model(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A random model with a byte-level tokenizer, as a plain transformers folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(PASSAGES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tiny_model(family, seed=seed, vocab_size=len(fast), **overrides).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def save_data(folder: Path) -> Path:
    """A data folder with LAMBADA-like passages and calibration text."""
    for name, rows in {
        "lambada_openai/test.jsonl": [{"text": text} for text in PASSAGES],
        "piqa/validation.jsonl": QUESTIONS,
        "calibration/c4.jsonl": [{"text": f"Number {i}: " + " ".join(f"word{(i * 7 + j) % 31}" for j in range(60))} for i in range(40)],
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def grid_config(model: Path, **changes: Any) -> dict[str, Any]:
    """The smallest useful grid on `model`: dense and magnitude at 30 %."""
    config: dict[str, Any] = {
        "name": "tiny",
        "grid": {"model": str(model), "method": ["magnitude"], "sparsity": [0.3], "basis": "blocks"},
        "protocols": [{"name": "perplexity_passages", "sources": ["data-dir"]}],
        "efficiency": {"enabled": False},
    }
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    return config


class Bench:
    """A folder with a tiny model, data and a config, and the command line on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_tiny_model(folder / "model")
        self.data = save_data(folder / "data")
        self.out = folder / "out"
        self.config = folder / "grid.yaml"
        self.configure()

    def configure(self, **changes: Any) -> None:
        self.config.write_text(yaml.safe_dump(grid_config(self.model, **changes)), encoding="utf-8")

    def arguments(self, verb: str, *more: str) -> list[str]:
        common = ["--config", str(self.config), "--out", str(self.out), "--data", str(self.data)]
        extra = ["--plain", "--no-report"] if verb == "run" else ["--plain"] if verb in ("prune", "evaluate") else []
        return [verb, *common, *extra, *more]

    def __call__(self, verb: str, *more: str) -> int:
        """Runs a verb in this process."""
        return main(self.arguments(verb, *more))

    def start(self, verb: str, *more: str) -> Started:
        """Runs a verb in a process of its own."""
        return Started(self.arguments(verb, *more))

    def record_paths(self) -> list[Path]:
        return sorted(self.out.glob("cells/*/record.json"))

    def records(self) -> dict[str, dict[str, Any]]:
        """Every record by its cell, less what may differ between two runs."""
        return {path.parent.name: comparable(json.loads(path.read_text(encoding="utf-8"))) for path in self.record_paths()}

    def record(self, method: str) -> dict[str, Any]:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in self.record_paths()]
        (record,) = [one for one in found if one["run"]["method"] == method]
        return dict(record)

    def cell(self, method: str) -> Path:
        return self.out / "cells" / str(self.record(method)["run"]["cell_id"])


class Started:
    """A verb in a process of its own, forked from a server that has everything imported; speaks like `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str]) -> None:
        with tempfile.NamedTemporaryFile(suffix=".log", delete=False) as log:
            self.log = Path(log.name)
        self.process = forked(_run_verb, list(arguments), str(self.log))

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def communicate(self, timeout: float) -> str:
        """Waits for the end; returns all that was printed."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"still running after {timeout:g} s: {self.log.read_text()[-1000:]}")
        said = self.log.read_text(encoding="utf-8")
        self.log.unlink()
        return said


def _run_verb(arguments: list[str], log: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(arguments))


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without times, memory, speed, and the state of the checkout and of what was set aside."""
    record = json.loads(json.dumps(record))
    run, metrics, provenance = record["run"], record["metrics"], record["provenance"]
    for key in ("started_at", "finished_at", "command"):
        run.pop(key)
    run["stages"] = [stage["name"] for stage in run["stages"]]
    metrics.pop("efficiency")
    for score in metrics["scores"]:
        score["extra"].pop("seconds", None)
    for key in ("commit", "dirty", "threads", "extra"):
        provenance.pop(key)
    return dict(record)


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two records differ, for a message that fits a screen."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [line for key in sorted(left.keys() | right.keys()) for line in differences(left.get(key), right.get(key), f"{where}/{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [line for i, (a, b) in enumerate(zip(left, right, strict=True)) for line in differences(a, b, f"{where}/{i}")]
    return [] if left == right else [f"{where}: {left!r} != {right!r}"]
