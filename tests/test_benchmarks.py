"""The GPU benchmark runs anywhere, on the few libraries that a GPU machine has."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

from cxr.recipes import Normalization
from tests.support.jobs import ROOT, run

PROGRAM = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
print("brought in:", *sorted({"ray", "tyro", "pydicom"} & set(sys.modules)))
"""


@pytest.mark.cluster
def test_gpu_benchmark_runs_quickly_on_a_cpu_without_ray_tyro_or_pydicom(tmp_path: Path) -> None:
    script, output = ROOT / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    words = [sys.executable, "-c", PROGRAM, str(script), "--quick", "--output", str(output)]
    ended = run(words, timeout_s=120, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[-1].strip() == "brought in:"
    assert any("images/s" in line for line in lines)
    results = json.loads(output.read_text())
    assert {(row["network"], row["work"]) for row in results["networks"]} == {
        (network, work) for network in ("alexnet", "vgg16") for work in ("train", "infer")
    }
    named = [row["transform"] for row in results["transforms"]]
    assert named == [f"normalize {kind}" for kind in get_args(Normalization)] + [
        "augment affine",
        "augment acquisition",
    ]
    assert all(row["images_per_s"] > 0 for row in results["networks"] + results["transforms"])
