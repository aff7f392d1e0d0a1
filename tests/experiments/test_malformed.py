"""Two hundred malformed configs: each gets one sentence and exit code 2; no traceback, no file written."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prunebench.experiments.config import GridConfig
from prunebench.experiments.plan import plan_grid
from prunebench.models.errors import BadInput
from prunebench.run_all import main
from tests.experiments.support import Bench, grid_config

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["magnitude", "random", "0.2", "../..", "a\nb", "\x00", "🙂", "1e309", "embedded:nothing", "/", "~", "%s", "{}"]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)), max_leaves=8
)
PATHS = [
    *(f"grid.{key}" for key in ("model", "method", "sparsity", "seed", "recovery", "basis", "dense", "exclude", "include")),
    *("name", "grid", "calibration", "protocols", "evaluation", "efficiency", "run", "extends", "method_config", "synthetic", "nonsense"),
    *(
        "calibration.num_samples",
        "calibration.source",
        "efficiency.repeats",
        "run.workers",
        "run.executor",
        "evaluation.limit",
        "grid.sparsity.0",
    ),
]


def put(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`config` with `value` at a dotted path."""
    first, _, rest = path.partition(".")
    if not rest:
        return {**config, first: value}
    inner = config.get(first)
    return {**config, first: put(inner if isinstance(inner, dict) else {}, rest, value)}


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """A config with something wrong in one or two places, or text that is no YAML mapping at all."""
    kind = draw(st.sampled_from(["values", "values", "values", "key", "text", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(min_size=1, max_size=200))
    if kind == "text":
        return draw(st.text(min_size=1, max_size=200)).encode("utf-8", "surrogatepass")
    config = grid_config(Path("MODEL"))
    if kind == "key":
        config = put(
            config, draw(st.sampled_from(["", "grid.", "run.", "calibration."])) + draw(st.from_regex(r"[a-z_]{1,12}", fullmatch=True)), 1
        )
    for _ in range(draw(st.integers(1, 2)) if kind == "values" else 0):
        config = put(config, draw(st.sampled_from(PATHS)), draw(TREES))
    return yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")


def is_fine(text: bytes) -> bool:
    """The generator happened on a config that is right: nothing to refuse."""
    try:
        plan_grid(GridConfig.model_validate(yaml.safe_load(text.decode("utf-8-sig"))))
    except (BadInput, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return False
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("malformed"))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(text=malformed())
def test_a_malformed_config_gets_one_sentence_and_writes_nothing(place: Bench, text: bytes) -> None:
    text = text.replace(b"MODEL", str(place.model).encode())
    assume(not is_fine(text))
    place.config.write_bytes(text)
    before = sorted(place.folder.rglob("*"))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(place.arguments("run"))
    said = errors.getvalue().strip()
    assert code == 2, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert said.isprintable()
    assert sorted(place.folder.rglob("*")) == before
