"""A grid on a two-node Ray cluster (both nodes on this machine) with a worker killed midway; which cluster a run joins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.ray import check_fits, worker_environment
from prunebench.models.errors import BadInput
from tests.experiments.support import ROOT, Bench, differences

# Ray starts daemons and threads, so the whole scene plays in a process of its own.
SCENE = """
import json, os, signal, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from tests.experiments.support import Bench

bench = object.__new__(Bench)
bench.folder = Path(sys.argv[1])
bench.model, bench.data, bench.config = (bench.folder / name for name in ("model", "data", "grid.yaml"))
bench.out = bench.folder / "ray"
plugin = sys.argv[2]
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
killed = []

def kill_a_worker():
    while not killed:
        for path in bench.out.glob("cells/*/unfinished/prune/method/state.safetensors"):
            progress = path.parents[3] / "progress.json"
            if progress.exists() and len(list(bench.out.glob("cells/*/record.json"))) >= 3:
                pid = json.loads(progress.read_text())["pid"]
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
        time.sleep(0.05)

threading.Thread(target=kill_a_worker, daemon=True).start()
code = bench("run", "--plugin", plugin, "--executor", "ray", "--address", cluster.address)
nodes = {node["NodeID"] for node in ray.nodes()} if ray.is_initialized() else set()
cluster.shutdown()
print(json.dumps({"code": code, "killed": len(killed)}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ray_nodes_with_a_worker_killed_give_the_records_of_local(bench: Bench) -> None:
    bench.configure(
        grid={"method": ["magnitude", "random", "learned"], "sparsity": [0.2, 0.4], "seed": [0, 1, 2, 3], "dense": False},
        calibration={"source": "c4", "num_samples": 4, "seq_len": 16},
        method_config={"learned": {"steps": 20, "pause": 0.1}},
    )
    plugin = str(Path(__file__).parents[1] / "chaos" / "learned.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    scene = subprocess.Popen(
        [sys.executable, "-c", SCENE, str(bench.folder), plugin],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = scene.communicate(timeout=500)
    finally:
        if scene.poll() is None:
            os.killpg(scene.pid, signal.SIGKILL)
            time.sleep(1)
    assert '{"code": 0, "killed": 1}' in said, said[-3000:]
    bench.out = bench.folder / "ray"
    on_ray = bench.records()
    assert len(on_ray) == 24
    bench.out = bench.folder / "local"
    assert bench("run", "--plugin", plugin) == 0
    assert not differences(on_ray, bench.records())


ALONE = """
import json, os, sys
from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.ray import RayExecutor

ray = RayExecutor(RunSettings(executor="ray")).ray

def told():
    import os, sys
    return {"path": sys.path, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}

print(json.dumps(ray.get(ray.remote(told).remote())))
ray.shutdown()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie below its temporary folder, and the path of a socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_without_an_address_ray_starts_here_whatever_cluster_a_stale_file_names(tmp_path: Path, short_folder: Path) -> None:
    rays_own = short_folder / "ray"
    rays_own.mkdir()
    (rays_own / "ray_current_cluster").write_text("127.0.0.1:1")
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "RAY_ADDRESS")}
    environment |= {"RAY_TMPDIR": str(short_folder), "PYTHONPATH": f"{tmp_path}/mine:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
    scene = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert scene.returncode == 0, scene.stderr[-2000:]
    told = json.loads(scene.stdout.splitlines()[-1])
    assert [entry for entry in told["path"] if entry in (f"{tmp_path}/mine", str(ROOT))] == [f"{tmp_path}/mine", str(ROOT)]
    assert told["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize(
    ("address", "variable", "named"),
    [
        ("127.0.0.1:1", None, "run.address = '127.0.0.1:1' (Connection refused)"),
        ("[::1]:1", None, "run.address = '[::1]:1'"),
        ("ray://127.0.0.1:1", "127.0.0.1:2", "run.address = 'ray://127.0.0.1:1' (Connection refused)"),
        (None, "127.0.0.1:1", "RAY_ADDRESS = '127.0.0.1:1' (Connection refused)"),
        ("auto", "127.0.0.1:1", "run.address = 'auto' (Connection refused)"),
    ],
)
def test_a_cluster_that_is_gone_is_one_sentence_at_once(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str | None, variable: str | None, named: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert bench("run", "--executor", "ray", *(["--address", address] if address else [])) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: no Ray cluster answers at {named}")
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpus_per_cell": 1}, "run.gpus_per_cell = 1, but Ray found 0 "),
        ({"cpus_per_cell": 2.5}, "run.cpus_per_cell = 2.5, but Ray found 2 "),
        ({"memory_gb_per_cell": 5}, "run.memory_gb_per_cell = 5, but Ray found 4.2 "),
    ],
)
def test_a_cell_that_one_machine_has_no_room_for_is_refused(settings: dict[str, float], words: str) -> None:
    found = {"CPU": 2.0, "memory": 4.2e9}
    check_fits(RunSettings(executor="ray", cpus_per_cell=2, memory_gb_per_cell=4.2), found)
    with pytest.raises(BadInput, match=words):
        check_fits(RunSettings.model_validate({"executor": "ray", **settings}), found)


@pytest.mark.parametrize("policy", ["active", "passive"])
def test_workers_of_a_cluster_keep_its_python_path_and_wait_as_the_user_says(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setenv("PYTHONPATH", "")
    assert worker_environment(joins=True) == {"PYTHONPATH": f"{ROOT}:${{PYTHONPATH}}", "OMP_WAIT_POLICY": policy}
    assert worker_environment(joins=False)["PYTHONPATH"] == str(ROOT)
