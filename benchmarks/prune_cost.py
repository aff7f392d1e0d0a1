"""What each training-free method costs: seconds, peak memory over the loaded weights, tokens.

    python benchmarks/prune_cost.py --shape embedded 1.1b --samples 10 --seq-len 64 --out cost.json

Every (shape, method) runs in a process of its own, so that one peak can't hide another. Peak memory is the highest resident
set (on a GPU: allocated memory) while `prune` runs, less what it was with the model loaded and warmed up by one forward
pass of one token. Bounds of the project: first-order Taylor at most +25 % of the weights, second order at most +100 % of
the pruned matrices, both on the 1.1B shape in float32 with 10 samples of 64 tokens.

Shapes other than `embedded` are random weights. `7b` needs a GPU; without one its row holds sizes only, from the meta device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES: dict[str, dict[str, int]] = {
    "1.1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "magnitude": ("magnitude", {}),
    "llm_pruner vector": ("llm_pruner", {"importance": "vector"}),
    "llm_pruner first": ("llm_pruner", {"importance": "first"}),
    "llm_pruner second": ("llm_pruner", {"importance": "second"}),
    "llm_pruner mix": ("llm_pruner", {"importance": "mix"}),
    "wanda_sp": ("wanda_sp", {}),
    "flap": ("flap", {}),
    "block_influence": ("block_influence", {}),
    "wanda": ("wanda", {}),
    "sparsegpt": ("sparsegpt", {}),
}


class Peak:
    """The highest value of `read` while the block runs, looked at every 2 ms."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.read, self.value = read, 0
        self._done = threading.Event()

    def __enter__(self) -> Peak:
        self.value = self.read()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.value = max(self.value, self.read())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.value = max(self.value, self.read())


def load(shape: str, device: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if shape == "embedded":
        from prunebench.models.loading import ModelSpec, load_model

        return load_model(ModelSpec(name="embedded:smollm2-135m-instruct", device=device)).model
    torch.manual_seed(0)
    dtype = torch.float32 if shape == "1.1b" else torch.bfloat16
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)).to(dtype).eval()  # type: ignore[arg-type]


def measure(shape: str, method: str, samples: int, seq_len: int, sparsity: float, device: str) -> dict[str, Any]:
    """One row, in this process."""
    import psutil
    import torch

    from prunebench.methods.data import PruningData
    from prunebench.methods.pruner import Run
    from prunebench.methods.registry import get_pruner
    from prunebench.models.anatomy import Anatomy
    from prunebench.models.budget import Budget

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = load(shape, device)
    name, settings = METHODS[method]
    pruner = get_pruner(name)
    tokens = torch.randint(5, model.config.vocab_size, (samples, seq_len), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(tokens[:1, :1].to(device))
    on_gpu = device != "cpu"
    process = psutil.Process()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else process.memory_info().rss
    anatomy = Anatomy.from_model(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder, Peak(lambda: process.memory_info().rss) as peak:
        run = Run(seed=0, device=torch.device(device), folder=Path(folder))
        start = time.perf_counter()
        masks = pruner(pruner.Config(**settings)).prune(model, Budget(sparsity, "blocks"), PruningData(tokens, "random"), run)
        seconds = time.perf_counter() - start
    highest = torch.cuda.max_memory_allocated() if on_gpu else peak.value
    kept = masks.count(Anatomy.from_model(model))
    return {
        "shape": shape,
        "method": method,
        "device": device,
        "seconds": round(seconds, 2),
        "tokens": tokens.numel() if pruner.needs_calibration else 0,
        "weights_bytes": weights,
        "extra_bytes": highest - before,
        "extra_over_weights": round((highest - before) / weights, 4),
        "achieved_sparsity_blocks": round(1 - kept.blocks / anatomy.dense_params.blocks, 4),
    }


def meta_row(shape: str) -> dict[str, Any]:
    """What can be said of a shape without running it."""
    import torch

    from prunebench.models.anatomy import Anatomy

    model = load(shape, "meta")
    largest = max(p.numel() for p in model.parameters() if p.ndim == 2 and p.shape[0] != model.config.vocab_size)
    bytes_each = torch.finfo(model.dtype).bits // 8
    return {
        "shape": shape,
        "method": "(sizes only: needs a GPU)",
        "device": "meta",
        "weights_bytes": Anatomy.from_model(model).dense_params.total * bytes_each,
        "largest_gradient_bytes": largest * bytes_each,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| shape | method | device | seconds | tokens | weights GB | peak over weights GB | share of weights |", "|" + " --- |" * 8]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['shape']} | {row['method']} | {row['device']} | failed: {row['error']} | | | | |")
            continue
        cells = [
            row["shape"],
            row["method"],
            row["device"],
            row.get("seconds", ""),
            row.get("tokens", ""),
            f"{row['weights_bytes'] / 1e9:.2f}",
        ]
        cells += [f"{row['extra_bytes'] / 1e9:.2f}", f"{row['extra_over_weights']:+.1%}"] if "extra_bytes" in row else ["", ""]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=["embedded", *SHAPES], default=["embedded", "1.1b", "7b"])
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.2, help="of the decoder layers' parameters")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.one:
        print(json.dumps(measure(options.shape[0], options.method[0], options.samples, options.seq_len, options.sparsity, device)))
        return 0
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        """Kept at once: the last rows take longest."""
        rows.append(row)
        print(f"{row['shape']} {row['method']}: {row.get('seconds', row.get('error', ''))}", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    for shape in options.shape:
        if shape == "7b" and device == "cpu":
            add(meta_row(shape))
            continue
        for method in options.method:
            arguments = [
                "--one",
                "--shape",
                shape,
                "--method",
                method,
                "--samples",
                str(options.samples),
                "--seq-len",
                str(options.seq_len),
            ]
            command = [sys.executable, __file__, *arguments, "--sparsity", str(options.sparsity)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                add(json.loads(done.stdout.splitlines()[-1]))
            else:
                last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
                add({"shape": shape, "method": method, "device": device, "error": last[:200]})
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
