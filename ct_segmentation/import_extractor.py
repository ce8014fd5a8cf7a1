"""Make a shape extractor's file from U-Net weights trained elsewhere.

Weights do not record what they were trained on, so give it as options. Each output channel is one logit, the body
first; width and classes are found in the weights. A network of three channels, such as the published one, which saw
each slice in all three, becomes an equivalent one of one channel.
"""

import argparse
import logging
from pathlib import Path

from data.errors import InputError, run_command
from data.loading.settings import CtMapSettings
from data.settings.declaration import HelpFormatter, add_options, from_namespace
from data.settings.parser import CommandParser
from data.settings.values import positive_float, positive_int
from data.volumes.outputs import check_free
from models.published_unet import seeing_gray, unet_from_state
from models.shape_extractor import FILE_NAME, ExtractorSettings, ShapeExtractor, save_extractor, software_versions

log = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options, `ct_map` among them."""
    parser = CommandParser(
        prog="python -m ct_segmentation.import_extractor",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="state dict of a U-Net (inc, down1..4, up1..4, outc)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the extractor's folder")
    parser.add_argument(
        "--input_range", nargs=2, type=float, metavar=("LO", "HI"), required=True,
        help="network input at the two ends of the CT window; 0 1 if images were divided by 255",
    )  # fmt: skip
    parser.add_argument("--size", type=positive_int, default=256, help="rows and columns of the training slices")
    parser.add_argument(
        "--spacing_mm", type=positive_float, required=True, help="pixel spacing of the training slices in mm"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing extractor")
    add_options(parser, CtMapSettings)
    options = parser.parse_args(arguments)
    try:
        options.ct_map = from_namespace(CtMapSettings, options).ct_map
    except InputError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> None:
    """Check that the weights fit, and write the extractor's folder.

    Raises:
        InputError: they do not, or the folder holds an extractor already.
    """
    opt = parse(arguments)
    path = opt.out / FILE_NAME
    check_free([path], "--out", [opt.weights], overwrite=opt.overwrite)
    net, found = unet_from_state(opt.weights)
    if found["n_channels"] == 3:
        net, found = seeing_gray(net, found)
        log.info("%s: takes 3 channels; each is given the same slice, as in the published code", opt.weights)
    if found["n_channels"] != 1:
        raise InputError(
            f"{opt.weights}: takes {found['n_channels']} channels; expected 1 (a CT slice), or 3 that all show it"
        )
    settings = ExtractorSettings(
        width=found["width"],
        n_classes=found["n_classes"],
        ct=opt.ct_map,
        size=opt.size,
        spacing_mm=opt.spacing_mm,
        input_range=(opt.input_range[0], opt.input_range[1]),
        wide_up=found["wide_up"],
        versions=software_versions(),
        training={"dataset": f"data elsewhere (weights {opt.weights.name})"},
    )
    extractor = ShapeExtractor(settings)
    extractor.net = net
    save_extractor(extractor, path)
    log.info("%s: width %d, %s", path, settings.width, " and ".join(settings.class_names))


if __name__ == "__main__":
    run_command(main)
