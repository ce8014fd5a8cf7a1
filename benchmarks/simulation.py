"""How fast training pairs are simulated from CT, slabs cut and MR made, as `--model simulated_pairs` draws them."""

from functools import partial
from pathlib import Path

from benchmarks.data_sets import BODY_MM, rate
from benchmarks.machine import take_turns
from benchmarks.settings import BenchmarkSettings
from data.loading.settings import DataSettings
from data.phantom.labels import body_mask
from data.phantom.patients import PhantomSettings, make_patient
from data.prepared.manifest import Manifest
from data.simulation.simulation_set import SimulationSet
from data.simulation.simulation_volume import simulation_volume
from models.base_model import Place
from models.simulated_pairs_model import SimulatedPairsModel, SimulatedPairsSettings

SLABS = (1, 5)
BATCHES_A_TURN = 4
SLICE_MM, SLICES = 4.0, 12


def measure_simulation(opt: BenchmarkSettings) -> dict:
    """Return the pairs that are simulated in a second, by the slices of a slab; a pair is an MR slab and its CT."""
    ct, size, batch = generated_ct(2 * opt.simulation_size), opt.simulation_size, opt.simulation_batch
    ways = {str(slab): partial(draw_batches, build_model(opt, ct, slab)) for slab in SLABS}
    seconds = take_turns(ways, opt.turns, opt.device)
    rates = {way: rate(BATCHES_A_TURN * batch, values) for way, values in seconds.items()}
    rounded = {way: [round(value, 3) for value in values] for way, values in seconds.items()}
    return {"pixels": size, "pairs_a_batch": batch, "seconds": rounded, "pairs_per_second": rates}


def generated_ct(matrix: int) -> SimulationSet:
    """Return the middle of a generated patient, `matrix` pixels wide, as the simulation takes it."""
    pixel_mm = BODY_MM / matrix
    patient = make_patient(0, 0, "test", PhantomSettings(matrix, SLICES, pixel_mm, SLICE_MM))
    assert patient.ct is not None
    volume = simulation_volume(patient.ct.array, body_mask(patient.labels.array), pixel_mm, SLICE_MM)
    return SimulationSet(
        {"ct": {"hu": volume.hu, "depth": volume.depth}}, SLICE_MM, Manifest(matrix, pixel_mm, SLICE_MM, (), {})
    )


def build_model(opt: BenchmarkSettings, ct: SimulationSet, slab: int) -> SimulatedPairsModel:
    """Return a model that draws slabs of `slab` slices as the recommended recipe does."""
    chosen = {"dataroot": Path(), "slab": slab, "crop_size": opt.simulation_size, "batch_size": opt.simulation_batch}
    data = DataSettings(**SimulatedPairsModel.shared_defaults(DataSettings) | chosen)
    return SimulatedPairsModel(SimulatedPairsSettings(ngf=1), data, ct, Place(opt.device))


def draw_batches(model: SimulatedPairsModel) -> None:
    """Draw what one turn times."""
    for _ in range(BATCHES_A_TURN):
        model.draw()
