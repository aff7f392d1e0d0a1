"""Every script of benchmarks/, probes/ and docs/ can still be started: it says what it does."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.experiments.support import ROOT

FOLDERS = ("benchmarks", "probes", "docs")
SCRIPTS = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_does(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"script_{script.replace('/', '_').removesuffix('.py')}", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 0
    assert f"python {script}" in capsys.readouterr().out
