"""`tools.benchmark_volume`: the volume that is converted, and what is reported of it."""

import json

import numpy as np

from data.values.modality import check_mr
from tools import benchmark_volume


def test_the_volume_is_an_mr_of_the_wanted_size():
    mr = benchmark_volume.large_mr(72, 50)
    assert mr.array.shape == (50, 72, 72) and mr.array.dtype == np.int16 and mr.array.min() >= 0
    np.testing.assert_allclose([n * mm for n, mm in zip(mr.size, mr.spacing, strict=True)], [512, 512, 1800])
    check_mr(mr)


def test_every_checkout_converts_the_same_volume_for_every_size(tmp_path, monkeypatch, capsys):
    called = []

    def converted(root, volume, work, size):
        assert volume.exists() and (work / f"checkpoints/benchmark_{size}/inference.json").exists()
        called.append((root.name, size))
        return {"peak_mib": 100 * size, "seconds": 1.5}

    monkeypatch.setattr(benchmark_volume, "convert", converted)
    options = ["--work", tmp_path, "--root", tmp_path / "a", tmp_path / "b", "--matrix", 64, "--slices", 24]
    benchmark_volume.main([*map(str, options), "--size", "32", "64", "--ngf", "2"])
    report = json.loads(capsys.readouterr().out)
    assert called == [("a", 32), ("b", 32), ("a", 64), ("b", 64)]
    assert report["hardware"]["voxels"] == 64 * 64 * 24
    assert [run["peak_mib"] for run in report["runs"]] == [3200, 3200, 6400, 6400]
