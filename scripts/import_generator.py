"""Take over a generator trained elsewhere (the published code, pytorch-CycleGAN-and-pix2pix) for `test_adapt.py`.

Writes `checkpoints/NAME/latest_net_G_A.pth` and the `inference.json` that says what the weights do not: how volumes
became the slices that they were trained on.
"""

import argparse
import logging
from pathlib import Path

import torch

from data.errors import run_command
from data.outputs import check_free
from data.settings.values import experiment_name, parse_numbers, positive_float, positive_int
from data.values.intensity import CT_WINDOW_HU, IntensityMap, parse_mr_window, parse_window
from models.inference_settings import FILE_NAME, InferenceSettings, package_versions
from models.networks import GENERATORS, NORMS, UPSAMPLINGS, Architecture, build_generator
from models.run_folder import weights_path
from models.state_dicts import load_network_weights, save_network_weights
from options.base_options import checked

log = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.import_generator",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="state dict of the generator MR -> CT (net_G_A)")
    parser.add_argument("--name", type=experiment_name, required=True, help="what to call the model")
    parser.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="where models are kept")
    parser.add_argument("--netG", choices=GENERATORS, default="resnet_9blocks", help="architecture")
    parser.add_argument("--ngf", type=positive_int, default=64, help="features after the first layer")
    parser.add_argument("--norm", choices=NORMS, default="instance", help="normalisation layer")
    parser.add_argument("--use_dropout", action="store_true", help="trained with dropout")
    parser.add_argument("--upsample", choices=UPSAMPLINGS, default="transposed", help="upsampling layer")
    parser.add_argument("--size", type=positive_int, default=256, help="pixels of a training slice's side")
    parser.add_argument("--spacing_mm", type=positive_float, required=True, help="pixel spacing of the training slices")
    parser.add_argument("--mr_window", nargs="+", default=["0", "400"], metavar="W", help="percentile, tissue or LO HI")
    parser.add_argument("--ct_window", nargs=2, metavar=("LO", "HI"), default=CT_WINDOW_HU, help="HU at -1 and 1")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    options = parse_numbers(parser, arguments)
    options.mr_window = checked(parser, parse_mr_window, options.mr_window)
    options.ct = IntensityMap.window(*checked(parser, parse_window, options.ct_window))
    return options


def main(arguments: list[str] | None = None) -> None:
    """Check that the weights fit, and write the model's folder."""
    opt = parse(arguments)
    folder = opt.checkpoints_dir / opt.name
    target = weights_path(folder, "latest", "G_A")
    check_free([target, folder / FILE_NAME], "--name", [opt.weights], overwrite=opt.overwrite)
    architecture = Architecture(opt.netG, opt.ngf, opt.norm, opt.use_dropout, opt.upsample)
    net = build_generator(architecture)
    load_network_weights(net, opt.weights, taken_over=True)
    with torch.inference_mode():
        net.eval()(torch.zeros(1, 1, opt.size, opt.size))  # refuses a size that the network cannot take
    save_network_weights(net, target)
    settings = InferenceSettings(
        generator=architecture,
        direction="AtoB",
        size=opt.size,
        spacing_mm=opt.spacing_mm,
        slice_mm=None,
        mr_window=opt.mr_window,
        typical_mr=None,
        ct=opt.ct,
        versions=package_versions(),
    )
    settings.write(folder)
    log.info("%s: ready for python test_adapt.py --name %s", folder, opt.name)


if __name__ == "__main__":
    run_command(main)
