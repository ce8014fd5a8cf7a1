"""Import a model trained elsewhere (the published code, pytorch-CycleGAN-and-pix2pix) for `test_adapt.py`.

From a file it imports the generator from MR to CT. From a folder it imports all networks of an epoch: that generator
(`G_A`, or `G` if upstream trained only one), and `G_B`, `D_A` and `D_B` if present. `train.py --init_from NAME` trains
on from them.

Writes `checkpoints/NAME/latest_net_G_A.pth`, likewise the other networks, and `inference.json`, which records how
volumes became training slices. The weights do not contain this, so give it as options.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import InputError, run_command
from data.settings.declaration import HelpFormatter, add_options, from_namespace, option, redeclare
from data.settings.parser import CommandParser
from data.settings.values import positive_float, positive_int
from data.values.intensity import CT_WINDOW_HU, IntensityMap, parse_mr_window, parse_window
from data.volumes.outputs import check_free
from models.inference_settings import FILE_NAME, InferenceSettings, package_versions
from models.model_settings import ModelChoice
from models.networks import (
    Architecture,
    DiscriminatorSettings,
    GeneratorSettings,
    build_discriminator,
    build_generator,
)
from models.run_folder import weights_path
from models.state_dicts import load_network_weights, save_network_weights

log = logging.getLogger(__name__)

NETWORKS = ("G_A", "G_B", "D_A", "D_B")


@dataclass(frozen=True, kw_only=True)
class ImportSettings(ModelChoice, GeneratorSettings, DiscriminatorSettings):
    """weights and their training slices."""

    weights: Path = option(parse=Path, help="folder, or state dict of the generator MR -> CT")
    name: str = redeclare(ModelChoice, "name", help="name for the model, a folder in --checkpoints_dir")
    epoch: str = redeclare(ModelChoice, "epoch", help="if --weights is a folder: latest, or a saved epoch")
    size: int = option(256, parse=positive_int, help="rows and columns of the training slices")
    spacing_mm: float = option(parse=positive_float, help="pixel spacing of the training slices in mm")
    mr_window: str | tuple[float, float] = option(
        (0.0, 400.0), nargs="+", convert=parse_mr_window, metavar="W", help="percentile, tissue or LO HI"
    )
    ct_window: tuple[float, float] = option(
        CT_WINDOW_HU, nargs=2, convert=parse_window, metavar=("LO", "HI"), help="HU at -1 and 1"
    )
    overwrite: bool = option(False, help="replace an existing model")


def parse(arguments: Sequence[str] | None = None) -> ImportSettings:
    """Return the command's settings."""
    parser = CommandParser(
        prog="python -m scripts.import_generator", description=__doc__, formatter_class=HelpFormatter
    )
    add_options(parser, ImportSettings)
    return from_namespace(ImportSettings, parser.parse_args(arguments))


def find_networks(weights: Path, epoch: str) -> dict[str, Path]:
    """Return the files of the networks to import, by name: `G_A` first, which is required.

    Raises:
        InputError: a folder without the weights of that generator and epoch.
    """
    if not weights.is_dir():
        return {"G_A": weights}
    found = {name: path for name in NETWORKS if (path := weights_path(weights, epoch, name)).is_file()}
    alone = weights_path(weights, epoch, "G")
    if "G_A" not in found and alone.is_file():
        found = {"G_A": alone, **found}
    if "G_A" not in found:
        there = ", ".join(sorted(path.name for path in weights.glob("*_net_*.pth"))) or "none"
        raise InputError(
            f"{weights}: no {epoch}_net_G_A.pth; expected the weights of a generator from MR to CT; there are {there}: "
            "choose one with --epoch, or give the file itself"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Check that the weights fit, and write the model's folder."""
    opt = parse(arguments)
    folder = opt.checkpoints_dir / opt.name
    sources = find_networks(opt.weights, opt.epoch)
    targets = {name: weights_path(folder, "latest", name) for name in NETWORKS}
    check_free([*targets.values(), folder / FILE_NAME], "--name", list(sources.values()), overwrite=opt.overwrite)
    architecture = Architecture.of(opt, 1, 1)
    networks = {}
    for name, path in sources.items():  # all are read before any is written
        if name.startswith("G"):
            networks[name] = build_generator(architecture)
        else:
            networks[name] = build_discriminator(opt.netD, 1, opt.ndf, opt.n_layers_D, opt.norm)
        load_network_weights(networks[name], path, taken_over=True)
    with torch.inference_mode():
        # Refuses a size that the network cannot take.
        networks["G_A"].eval()(torch.zeros(1, 1, opt.size, opt.size))
    for name, target in targets.items():
        if name in networks:
            save_network_weights(networks[name], target)
        else:  # of a model that is replaced
            target.unlink(missing_ok=True)
    settings = InferenceSettings(
        generator=architecture,
        direction="AtoB",
        size=opt.size,
        spacing_mm=opt.spacing_mm,
        slice_mm=None,
        mr_window=opt.mr_window,
        typical_mr=None,
        ct=IntensityMap.window(*opt.ct_window),
        versions=package_versions(),
    )
    settings.write(folder)
    log.info("%s: %s", folder, ", ".join(networks))
    if missing := [name for name in NETWORKS if name not in networks]:
        log.info("missing: %s; train.py --init_from %s starts them from random weights", ", ".join(missing), opt.name)
    log.info("next: %s", settings.use_command(folder))


if __name__ == "__main__":
    run_command(main)
