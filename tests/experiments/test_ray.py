"""A grid on a two-node Ray cluster (both nodes on this machine) with a worker killed midway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
