"""The engine as an lm-eval `LM`, for `lm_eval.evaluate` and for side-by-side comparison with its `hf` backend."""

from __future__ import annotations

from typing import Any

from prunebench.evaluation.engine.engine import Engine


def harness_lm(engine: Engine) -> Any:
    """An `lm_eval.api.model.LM` whose three request types are answered by `engine`."""
    from lm_eval.api.model import LM

    class PrefixTreeLM(LM):
        """Loglikelihood, rolling loglikelihood and greedy generation over a prefix tree of the requests."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return engine.loglikelihood([request.args for request in requests]).responses

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return engine.loglikelihood_rolling([request.args[0] for request in requests]).responses

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return engine.generate_until([request.args for request in requests]).responses

    return PrefixTreeLM()
