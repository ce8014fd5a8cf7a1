"""The soak's report: which epochs it compares, what it finds in them, and how memory went."""

import numpy as np
import pytest
import torch

from tools import soak


@pytest.fixture
def runs(tmp_path):
    """Two runs with the same weights at epochs 5 and 10; the second has come to 15 too."""
    for folder, epochs in (("quiet", (5, 10)), ("disturbed", (5, 10, 15))):
        (tmp_path / folder).mkdir()
        for epoch in epochs:
            for network in soak.NETWORKS:
                torch.save({"w": torch.full((2,), float(epoch))}, tmp_path / folder / f"{epoch}_net_{network}.pth")
    return tmp_path / "quiet", tmp_path / "disturbed"


def test_all_epochs_that_both_runs_have_are_compared(runs):
    assert soak.compare(*runs) == ([5, 10], [])


@pytest.mark.parametrize(
    "weights", [{"w": torch.tensor([10.0, np.nextafter(np.float32(10), 11)])}, {"v": torch.ones(2)}]
)
def test_one_bit_or_a_missing_tensor_is_found_in_every_network(runs, weights):
    torch.save(weights, runs[1] / "10_net_D_S.pth")
    epochs, differing = soak.compare(*runs)
    assert epochs == [5, 10]
    assert set(differing) == {f"10_net_D_S.pth: {key}" for key in {"w", *weights}}


def test_memory_counts_once_a_process_has_settled_and_grows_by_its_slope():
    minutes = np.arange(0, 62, 2)
    samples = [(60.0 * t, 900 + 0.5 * t if t > 2 else 100.0) for t in minutes]  # 30 MiB an hour
    report = soak.memory_over_time(samples)
    assert report == {
        "samples": 29,
        "longest process [min]": 60.0,
        "median [MiB]": 916,
        "least [MiB]": 902,
        "most [MiB]": 930,
        "growth [MiB/h]": 30.0,
    }
