"""Finding pruners by name, in packages and in files, and what happens when one can't be found."""

import subprocess
import sys
from textwrap import dedent

import pytest

from prunebench.methods import registry
from prunebench.methods.pruner import Pruner
from prunebench.methods.registry import get_pruner, known_pruners, load_plugin, register
from prunebench.models.errors import BadInput

PLUGIN = """
from prunebench.methods.pruner import Pruner
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks

@register({name!r})
class Mine(Pruner):
    def prune(self, model, budget, data, run):
        return Masks.of(Anatomy.from_model(model))
"""


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers(monkeypatch):
    monkeypatch.setattr(registry.PRUNERS, "registered", dict(registry.PRUNERS.registered))
    monkeypatch.setattr(registry, "_plugin_names", dict(registry._plugin_names))


def write(path, text):
    path.write_text(dedent(text))
    return path


def test_every_built_in_has_the_name_that_the_user_types():
    for name in registry.PRUNERS.built_in:
        assert get_pruner(name).name == name
        assert issubclass(get_pruner(name), Pruner)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(BadInput, match=r"Unknown pruner 'magnitud'\. Did you mean 'magnitude'\? Known: .*random"):
        get_pruner("magnitud")


def test_a_file_adds_a_pruner(tmp_path):
    path = write(tmp_path / "mine.py", PLUGIN.format(name="mine"))
    assert load_plugin(path) == ["mine"]
    assert load_plugin(path) == ["mine"], "loading twice is harmless"
    assert get_pruner("mine").name == "mine"
    assert str(path) in known_pruners()["mine"].origin


def test_two_definitions_of_one_name_are_refused_with_both_places(tmp_path):
    load_plugin(write(tmp_path / "first.py", PLUGIN.format(name="twice")))
    with pytest.raises(BadInput, match=r"defined twice: at .*first\.py:\d+ and at .*second\.py:\d+"):
        load_plugin(write(tmp_path / "second.py", PLUGIN.format(name="twice")))


def test_a_plugin_may_not_take_the_name_of_a_built_in(tmp_path):
    with pytest.raises(BadInput, match="name of a built-in"):
        load_plugin(write(tmp_path / "mine.py", PLUGIN.format(name="magnitude")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers no pruner"),
        ("raise RuntimeError('no luck')", "can't be imported.*no luck"),
        ("def broken(:", "can't be imported.*SyntaxError"),
        ("from prunebench.methods.registry import register\n@register('mine')\nclass Mine: pass", "not a subclass"),
        (
            "from prunebench.methods import pruner, registry\n@registry.register('mine')\nclass Mine(pruner.Pruner): pass",
            "does not implement prune",
        ),
        (PLUGIN.format(name="My Pruner"), "not lower_snake_case"),
    ],
)
def test_a_bad_plugin_gets_one_sentence(tmp_path, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        load_plugin(write(tmp_path / "bad.py", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.py", "folder", "text.txt"])
def test_a_plugin_that_is_no_python_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(BadInput, match="is not a Python file"):
        load_plugin(tmp_path / name)


def test_register_refuses_what_is_not_a_class():
    with pytest.raises(BadInput, match="not a subclass"):
        register("thing")(lambda: None)  # type: ignore[arg-type]


def test_naming_the_pruners_imports_none_of_them():
    code = "import sys, prunebench.methods.registry as r; r.known_pruners(); print('prunebench.methods.magnitude' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
