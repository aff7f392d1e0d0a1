"""A pruner, a recovery, an allocation and a protocol from outside the tree go through a grid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prunebench.evaluation.catalogue import known_protocols, known_tasks
from tests.experiments.support import ROOT, Bench

TEXT = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
RECOVERY, ALLOCATION = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
(PROTOCOL,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
PRUNER = """
from prunebench.methods.magnitude import Magnitude
from prunebench.methods.registry import register

@register("outsider")
class Outsider(Magnitude):
    name = "outsider"
"""


def write(bench: Bench, **files: str) -> list[str]:
    options = []
    for name, text in files.items():
        path = bench.folder / name.replace("_yaml", ".yaml").replace("_py", ".py")
        path.write_text(text, encoding="utf-8")
        options += ["--plugin", str(path)]
    return options


@pytest.fixture(autouse=True)
def _forget_what_a_test_adds() -> Any:
    tasks, protocols = dict(known_tasks()), dict(known_protocols())
    yield
    for known, before in ((known_tasks(), tasks), (known_protocols(), protocols)):
        known.clear()
        known.update(before)  # type: ignore[arg-type]


def test_one_of_each_goes_through_a_grid_in_a_process_of_its_own(bench: Bench) -> None:
    plugins = write(bench, pruner_py=PRUNER, recovery_py=RECOVERY, allocation_py=ALLOCATION, protocol_yaml=PROTOCOL)
    bench.configure(
        grid={"method": [{"name": "outsider", "config": {"allocation": "spare_the_ends"}}], "recovery": ["scale_head"], "sparsity": [0.1]},
        protocols=["short_passages"],
    )
    assert bench("run", *plugins, "--executor", "processes") == 0
    run = bench.record("outsider")["run"]
    assert run["status"] == "done"
    assert run["config"]["method_source"].startswith("plugin:")
    assert run["config"]["recovery_source"].startswith("plugin:")
    assert run["config"]["protocols"][0]["source"].startswith("plugin:")
    shapes = bench.record("outsider")["metrics"]["shapes"]
    assert [shape["ffn_kept"] == shape["ffn_total"] for shape in shapes] == [True, False, True]


def test_a_changed_protocol_is_another_cell(bench: Bench) -> None:
    from prunebench.experiments.load_config import load_config
    from prunebench.experiments.plan import plan_grid
    from prunebench.experiments.plugins import load_plugins

    ids = set()
    for number, text in enumerate((PROTOCOL, PROTOCOL.replace("each alone", "one by one").replace("short_passages", "other_passages"))):
        (path,) = write(bench, **{f"p{number}_yaml": text})[1:]
        load_plugins([path])
        name = "other_passages" if number else "short_passages"
        ids.add(plan_grid(load_config(bench.config, [f"protocols=[{name}]"]), bench.data)[0].config.protocols[0].source)
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not: [closed", "is not valid YAML"),
        ("tasks: {}", "'protocols' is missing"),
        ("protocols: []", "protocols"),
        (PROTOCOL.replace("size: {documents: 6, tokens: 40}", ""), "size"),
        (PROTOCOL.replace("task: short_passages", "task: no_such_task"), "unknown task no_such_task"),
        (PROTOCOL.replace("name: short_passages", "name: reading"), "'reading', a name that is taken"),
        (PROTOCOL.replace("version: 1", "version: 1\n    verison: 2"), "verison"),
        ("just text", "plugin"),
    ],
)
def test_a_bad_protocol_file_is_one_sentence_and_changes_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    tasks, protocols = dict(known_tasks()), dict(known_protocols())
    assert bench("validate", *write(bench, bad_yaml=text)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert words in said[0]
    assert (known_tasks(), known_protocols()) == (tasks, protocols)


def test_an_unknown_allocation_names_the_known_ones(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.configure(grid={"method": [{"name": "magnitude", "config": {"allocation": "globl"}}]})
    assert bench("validate") == 2
    assert "Did you mean 'global'?" in capsys.readouterr().err


def test_every_file_that_the_table_names_is_there() -> None:
    named = [name for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", TEXT) if name.isascii()]
    assert named
    assert [name for name in named if not (ROOT / Path(name)).is_file()] == []
