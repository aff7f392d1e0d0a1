"""How fast a model runs and how much memory it takes: the model's own forward pass, batch of one, warm, repeated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prunebench.models.errors import BadInput
from prunebench.models.memory import peak_memory_bytes, reset_peak_memory

Progress = Callable[[str, int, int], None]

WARM_UP = 1
"""Runs that aren't counted: they fill caches and start thread pools."""


class Efficiency(BaseModel):
    """Medians over repeats on this machine, of one sequence at a time."""

    model_config = ConfigDict(extra="forbid")

    prefill_tokens_per_second: float = Field(description="prompt tokens over the time of one pass over the prompt")
    decode_tokens_per_second: float = Field(description="new tokens over the time of generating them one by one")
    latency_ms: float = Field(description="from the prompt to the last new token")
    time_to_first_token_ms: float
    peak_memory_bytes: int = Field(description="CUDA: allocated on all devices; CPU: resident size of the process")
    macs_per_token: int = Field(description="multiply-accumulates of all projections for one token, head included")
    prompt_tokens: int
    new_tokens: int
    repeats: int
    spread: dict[str, float] = Field(description="per quantity: (largest - smallest) / median over the repeats")
    definition: str


def measure_efficiency(
    model: Any,
    tokenizer: Any,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    repeats: int = 5,
    progress: Progress | None = None,
) -> Efficiency:
    """Times prefill and greedy decoding with the model's own key/value cache.

    Args:
        prompt_tokens: length of the prompt (fixed pseudo-random tokens). new_tokens: tokens decoded after it.
        repeats: measured runs, after a warm-up.
    Raises:
        BadInput: lengths that don't fit the model's context.
    """
    import torch

    from prunebench.evaluation.engine.engine import context_length

    limit = context_length(model.config, tokenizer)
    if min(prompt_tokens, repeats) < 1 or new_tokens < 2 or prompt_tokens + new_tokens > limit:
        raise BadInput(
            f"Efficiency with prompt_tokens={prompt_tokens}, new_tokens={new_tokens}, repeats={repeats} can't be "
            f"measured: give at least 1, 2 and 1, and no more than {limit} tokens together."
        )
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = torch.randint(0, vocabulary, (1, prompt_tokens), generator=generator).to(device)
    macs = count_macs(model, prompt[:, :1])
    reset_peak_memory()
    prefill: list[float] = []
    decode: list[float] = []
    for run in range(WARM_UP + repeats):
        first, rest = _timed_run(model, prompt, new_tokens, device)
        if run >= WARM_UP:
            prefill.append(first)
            decode.append(rest)
        if progress is not None:
            progress("efficiency", run + 1, WARM_UP + repeats)
    latency = [a + b for a, b in zip(prefill, decode, strict=True)]
    return Efficiency(
        prefill_tokens_per_second=prompt_tokens / statistics.median(prefill),
        decode_tokens_per_second=(new_tokens - 1) / statistics.median(decode),
        latency_ms=1000 * statistics.median(latency),
        time_to_first_token_ms=1000 * statistics.median(prefill),
        peak_memory_bytes=peak_memory_bytes(),
        macs_per_token=macs,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        spread={
            "prefill_tokens_per_second": _spread(prefill),
            "decode_tokens_per_second": _spread(decode),
            "latency_ms": _spread(latency),
        },
        definition=(
            f"one sequence, prompt of {prompt_tokens} tokens, {new_tokens} new tokens, median of {repeats} runs "
            f"after {WARM_UP} warm-up, {torch.get_num_threads()} threads, {next(model.parameters()).dtype} on "
            f"{device.type}"
        ),
    )


def _timed_run(model: Any, prompt: Any, new_tokens: int, device: Any) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last."""
    import torch

    with torch.inference_mode():
        _synchronise(device)
        started = time.perf_counter()
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        _synchronise(device)
        first = time.perf_counter()
        cache = output.past_key_values
        for _ in range(new_tokens - 1):
            output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        _synchronise(device)
    return first - started, time.perf_counter() - first


def count_macs(model: Any, token: Any) -> int:
    """Multiply-accumulates of every linear layer that one token passes through (attention over context not counted)."""
    import torch
    from torch import nn

    total = 0

    def count(module: nn.Linear, inputs: Any, output: Any) -> None:
        nonlocal total
        total += module.weight.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.inference_mode():
            model(input_ids=token, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def _synchronise(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
