"""One import name: the product runs beside a stranger's own `models`, `methods` and `evaluation`, however it was installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.support import ROOT, Bench

ROOMS = ("models", "methods", "evaluation", "experiments", "leaderboard")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked and new files of the repository in a folder of their own, links as links."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=True
    )
    folder = tmp_path_factory.mktemp("source") / "prunebench"
    for name in listed.stdout.decode().split("\0"):
        if name and not name.startswith("findings/") and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture
def stranger(tmp_path: Path) -> Bench:
    """A grid in a folder with packages of a researcher's own, and a plugin that uses both."""
    bench = Bench(tmp_path)
    for room in ("models", "methods", "evaluation"):
        (tmp_path / room).mkdir(exist_ok=True)
        (tmp_path / room / "__init__.py").write_text(f"OWNER = 'the stranger, {room}'\n", encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-pruner.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "quiet.py").write_text(f"import methods, models\nassert 'stranger' in methods.OWNER\n{code}", encoding="utf-8")
    bench.configure(
        grid={"method": ["quiet", "magnitude"]},
        calibration={"source": "c4", "num_samples": 4, "seq_len": 16},
        run={"executor": "processes"},
    )
    return bench


def run_to_the_page(bench: Bench, command: list[str], *path: Path) -> str:
    """Runs the stranger's grid in their folder, which goes first; returns where the product was found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (bench.folder, *path)))}
    arguments = [argument for argument in bench.arguments("run", "--plugin", "quiet.py") if argument != "--no-report"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=bench.folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (bench.out / "leaderboard" / "index.html").is_file()
    assert {bench.record(method)["run"]["status"] for method in ("quiet", "magnitude", "dense")} == {"done"}
    look = [sys.executable, "-c", "import prunebench.methods as m; print(m.__file__)"]
    return subprocess.run(look, capture_output=True, text=True, cwd=bench.folder, env=environment, check=True).stdout.strip()


@pytest.mark.slow
def test_a_wheel_runs_beside_a_strangers_packages(stranger: Bench, source: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(place), str(source)]
    subprocess.run(pip, check=True)
    assert not (place / "prunebench" / "methods").is_symlink()
    assert sorted(path.name for path in place.iterdir() if path.is_dir() and path.name not in ("bin", "__pycache__")) == [
        "prunebench",
        next(path.name for path in place.glob("prunebench-*.dist-info")),
    ]
    missing = [
        path.relative_to(source).as_posix()
        for room in ROOMS
        for path in (source / room).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not (place / "prunebench" / path.relative_to(source)).is_file()
    ]
    assert missing == []
    found = run_to_the_page(stranger, [sys.executable, "-m", "prunebench.run_all"], place)
    assert found.startswith(str(place))


@pytest.mark.slow
def test_an_editable_install_runs_beside_a_strangers_packages(stranger: Bench) -> None:
    script = Path(sys.executable).with_name("prunebench")
    found = run_to_the_page(stranger, [str(script)] if script.exists() else [sys.executable, "-m", "prunebench.run_all"])
    assert Path(found).resolve() == ROOT / "methods" / "__init__.py"


@pytest.mark.slow
def test_a_checkout_that_lost_its_links_runs(stranger: Bench, source: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(source, tmp_path / "checkout", symlinks=True)
    for link in (checkout / "prunebench").iterdir():
        if link.is_symlink():
            link.unlink()
    (checkout / "prunebench" / "models").write_text("../models")  # what git leaves on Windows
    found = run_to_the_page(stranger, [sys.executable, str(checkout / "run_all.py")], checkout)
    assert Path(found) == checkout / "methods" / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_by_its_bare_name_is_refused_in_one_sentence(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {room}"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"ImportError: import prunebench.{room}, not {room}" in done.stderr


def test_the_public_names_load_when_they_are_asked_for() -> None:
    code = (
        "import sys, prunebench; assert 'torch' not in sys.modules; import os; assert os.environ['OMP_WAIT_POLICY'] == 'passive';"
        "print(sorted(n for n in dir(prunebench) if not hasattr(prunebench, n)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout.strip() == "[]"
