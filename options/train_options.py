"""Options of `train.py`. Names are those of pytorch-CycleGAN-and-pix2pix; the published ones are aliases."""

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from data.loading.augmentation import PREPROCESS, Augmentation
from data.settings.values import (
    experiment_name,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
    share,
)
from models.cycle_gan_model import WARM_STARTS
from models.initialisation import INITIALISATIONS
from models.losses import GAN_MODES, SHAPE_LOSSES
from models.networks import DISCRIMINATORS, GENERATORS, NORMS, UPSAMPLINGS
from models.schedules import POLICIES
from models.shape_extractor import FOLDER_NAME
from options.base_options import add_ct_map, base_parser, checked, ct_map, finish, mr_window_rule
from visualization.windows import CT_WINDOWS, parse_display_window

LOCAL_HOSTS = ("localhost", "127.0.0.1")


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `train.py`."""
    parser = base_parser("train.py", "Train an unpaired MR to CT model.")
    _add_data(parser)
    _add_networks(parser)
    _add_losses(parser)
    _add_shape(parser)
    _add_warm_start(parser)
    _add_schedule(parser)
    _add_engine(parser)
    _add_display(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataroot", type=Path, required=True, help="prepared data set, or folder of trainA/ and trainB/ images"
    )
    data.add_argument(
        "--direction", "--which_direction", choices=("AtoB", "BtoA"), default="AtoB", help="AtoB: MR to CT"
    )
    data.add_argument("--batch_size", "--batchSize", type=positive_int, default=1, help="slices of each domain a step")
    data.add_argument("--num_threads", "--nThreads", type=nonnegative_int, default=2, help="threads that load slices")
    data.add_argument("--max_dataset_size", type=positive_int, help="at most this many samples an epoch")
    data.add_argument("--preprocess", choices=PREPROCESS, default="none", help="none takes slices as prepared")
    data.add_argument(
        "--load_size", "--loadSize", type=positive_int, help="resize_and_crop: resize to this first (286)"
    )
    data.add_argument("--crop_size", "--fineSize", type=positive_int, help="crop, resize_and_crop: random crop (256)")
    data.add_argument(
        "--flip", action="store_true", help="mirror left and right at random: for limbs, not for whole bodies"
    )
    data.add_argument("--rotate", type=nonnegative_float, default=0.0, help="turn at random by up to so many degrees")
    data.add_argument("--zoom", type=nonnegative_float, default=0.0, help="scale at random by up to this share")
    data.add_argument(
        "--mr_window", nargs="+", default=["percentile"], metavar="W",
        help="percentile, tissue (from 0 to above where fat lies), both each volume's own, or LO HI",
    )  # fmt: skip
    add_ct_map(data)


def _add_networks(parser: argparse.ArgumentParser) -> None:
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--netG", "--which_model_netG", choices=GENERATORS, default="resnet_9blocks", help="generator"
    )
    networks.add_argument("--netD", "--which_model_netD", choices=DISCRIMINATORS, default="basic", help="discriminator")
    networks.add_argument("--ngf", type=positive_int, default=64, help="features after the generator's first layer")
    networks.add_argument("--ndf", type=positive_int, default=64, help="features after the discriminator's first layer")
    networks.add_argument("--n_layers_D", type=positive_int, default=3, help="halvings of --netD n_layers")
    networks.add_argument("--norm", choices=NORMS, default="instance", help="normalisation layer")
    networks.add_argument("--use_dropout", action="store_true", help="dropout in the generator's inner blocks")
    networks.add_argument("--upsample", choices=UPSAMPLINGS, default="transposed", help="resize avoids checkerboards")
    networks.add_argument("--init_type", choices=INITIALISATIONS, default="normal", help="initialisation")
    networks.add_argument("--init_gain", type=positive_float, default=0.02, help="its scale")


def _add_losses(parser: argparse.ArgumentParser) -> None:
    losses = parser.add_argument_group("losses")
    losses.add_argument("--gan_mode", choices=GAN_MODES, default="lsgan", help="adversarial loss")
    losses.add_argument("--lambda_gan", type=nonnegative_float, default=1.0, help="adversarial losses")
    losses.add_argument(
        "--pool_size", type=nonnegative_int, default=50, help="past fakes that a discriminator sees again"
    )
    losses.add_argument("--lambda_A", type=nonnegative_float, default=10.0, help="cycle loss A -> B -> A")
    losses.add_argument("--lambda_B", type=nonnegative_float, default=10.0, help="cycle loss B -> A -> B")
    losses.add_argument(
        "--lambda_identity", type=nonnegative_float, default=0.5, help="identity losses, times lambda_A or _B"
    )
    for cycle, pair in (("A", "fake_B, real_A"), ("B", "fake_A, real_B")):
        losses.add_argument(
            f"--lambda_correlation_{cycle}", f"--lambda_co_{cycle}", type=nonnegative_float, default=2.0,
            help=f"correlation-coefficient loss 1 - r({pair})^2; 0: plain CycleGAN",
        )  # fmt: skip
    losses.add_argument(
        "--lcc_window", type=nonnegative_int, default=0,
        help="side in pixels of the windows that r is taken in; 0: the whole slice, as published",
    )  # fmt: skip


def _add_shape(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_argument_group("shape constraint", "with both weights 0 no extractor and no mask is read")
    add = shape.add_argument
    add(
        "--lambda_shape",
        "--lambda_Self",
        type=nonnegative_float,
        default=10.0,
        help="shape consistency with the MR's mask",
    )
    add("--shape_loss", choices=SHAPE_LOSSES, default="l1", help="its form; l1 is the published one")
    add("--lambda_shape_gan", type=nonnegative_float, default=1.0, help="adversarial loss of the shape discriminator")
    add(
        "--shape_extractor",
        type=Path,
        help=f"its file, or folder of its run (default: DATAROOT/{FOLDER_NAME})",
    )


def _add_warm_start(parser: argparse.ArgumentParser) -> None:
    warm = parser.add_argument_group("warm start", "generators trained on simulated pairs before they meet an opponent")
    add = warm.add_argument
    add("--warm_start", choices=WARM_STARTS, default="none", help="simulated_mr: T1-like MR made from the CT slices")
    add("--n_epochs_warm", type=nonnegative_int, help="epochs on simulated pairs alone (10)")
    add("--warm_lr", type=positive_float, help="learning rate in them (0.001)")
    add("--lambda_simulated", type=nonnegative_float, help="weight of the simulated pairs after them (10)")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument(
        "--n_epochs", "--niter", type=nonnegative_int, default=100, help="epochs at the full learning rate"
    )
    schedule.add_argument(
        "--n_epochs_decay", "--niter_decay", type=nonnegative_int, default=100, help="epochs of decay after them"
    )
    schedule.add_argument("--lr", type=positive_float, default=2e-4, help="learning rate of Adam")
    schedule.add_argument("--beta1", type=nonnegative_float, default=0.5, help="momentum of Adam")
    schedule.add_argument("--lr_policy", choices=POLICIES, default="linear", help="learning-rate schedule")
    schedule.add_argument("--lr_decay_iters", type=positive_int, help="step: epochs between steps (50)")
    schedule.add_argument(
        "--ema",
        type=share,
        default=0.0,
        help="decay of the average of the generators that is kept for use, lower in the first steps; 0: none",
    )
    schedule.add_argument("--seed", type=nonnegative_int, default=0, help="of weights, order and augmentation")
    schedule.add_argument("--init_from", type=experiment_name, metavar="NAME", help="start a new run from this model")
    schedule.add_argument("--continue_train", action="store_true", help="go on from the last saved state of --name")
    schedule.add_argument(
        "--save_latest_freq", type=save_rhythm, default="5000", metavar="N",
        help="between two saved states: N steps, or minutes as in 10min",
    )  # fmt: skip
    schedule.add_argument(
        "--save_epoch_freq", type=positive_int, default=5, help="epochs between two kept sets of weights"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine", "speed and repeatability; --precision belongs to it")
    add = engine.add_argument
    add("--compile", action="store_true", help="compile the networks: minutes at the start, for faster steps")
    add(
        "--deterministic", action="store_true",
        help="on a GPU, the same result every time, with slower algorithms; a CPU's is in any case",
    )  # fmt: skip
    add(
        "--sync_batch_norm", action="store_true",
        help="with --norm batch on several GPUs: statistics of the slices of all",
    )  # fmt: skip


@dataclass(frozen=True)
class SaveRhythm:
    """When a training state is saved in mid-epoch: every so many steps, or minutes."""

    steps: int | None
    minutes: int | None

    def due(self, iteration: int, saved_at: float) -> bool:
        """Tell whether it is time after an epoch's step `iteration`, the last state being of `time.monotonic()`."""
        if self.steps:
            return iteration % self.steps == 0
        return time.monotonic() - saved_at >= 60 * self.minutes


def save_rhythm(text: str) -> SaveRhythm:
    """Return the value of `--save_latest_freq`: '5000' is steps, '10min' minutes."""
    found = re.fullmatch(r"\s*(\d+)\s*(min)?\s*", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of steps, or of minutes as in 10min")
    number = int(found[1])
    return SaveRhythm(None, number) if found[2] else SaveRhythm(number, None)


def _add_display(parser: argparse.ArgumentParser) -> None:
    display = parser.add_argument_group("display", "nothing here changes a result or can stop a training")
    add = display.add_argument
    add("--print_freq", type=positive_int, default=100, help="steps between two lines of losses")
    add("--display_freq", type=positive_int, default=400, help="steps between two pictures")
    add("--display_ncols", type=positive_int, default=4, help="images in a row of a picture")
    add(
        "--display_window", nargs="+", default=["default"], metavar="W",
        help=f"how CT is shown: {', '.join(CT_WINDOWS)}, or LEVEL WIDTH in HU; default is 40 800",
    )  # fmt: skip
    add("--no_html", action="store_true", help="keep no page of pictures and curves in NAME/web")
    add("--display_id", type=nonnegative_int, default=0, help="above 0: number of the windows in visdom; 0: no visdom")
    add("--display_server", default="http://localhost", help="visdom server")
    add("--display_port", type=port_number, default=8097, help="its port")
    add("--display_env", help="its environment (default: NAME)")
    add(
        "--display_start", action="store_true",
        help="start a visdom server for this run, which this machine alone can reach; it ends with the run",
    )  # fmt: skip


def local_server(parser: argparse.ArgumentParser, text: str) -> str:
    """Return the address of a visdom server that is started here, in whatever way it is written."""
    address = urlsplit(text if "://" in text else f"http://{text}")
    if address.hostname not in LOCAL_HOSTS or address.scheme != "http":
        parser.error(
            f"--display_start starts a server here, --display_server {text} is elsewhere; expected http://localhost"
        )
    if address.netloc.lower() != address.hostname or address.path.strip("/"):
        parser.error(f"--display_server {text}: expected http://{address.hostname}, and the port in --display_port")
    return f"http://{address.hostname}"


def port_number(text: str) -> int:
    """Return the number of a TCP port."""
    port = positive_int(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port number up to 65535")
    return port


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options; nothing changes them afterwards.

    `mr_window` is 'percentile', 'tissue' or (low, high), `ct_map` the `IntensityMap` of `--ct_window` or
    `--ct_transfer`, `augmentation` that of `--preprocess` and what belongs to it, `display_window` a
    `DisplayWindow`.
    """
    parser = train_parser()
    options = finish(parser, arguments)
    if options.n_layers_D != 3 and options.netD != "n_layers":
        parser.error(f"--n_layers_D {options.n_layers_D} needs --netD n_layers")
    warm = options.warm_start != "none"
    needs = {
        "--load_size": (options.load_size, options.preprocess == "resize_and_crop", "--preprocess resize_and_crop"),
        "--crop_size": (options.crop_size, options.preprocess != "none", f"--preprocess {', '.join(PREPROCESS[1:])}"),
        "--lr_decay_iters": (options.lr_decay_iters, options.lr_policy == "step", "--lr_policy step"),
        "--n_epochs_warm": (options.n_epochs_warm is not None, warm, "--warm_start simulated_mr"),
        "--warm_lr": (options.warm_lr is not None, warm, "--warm_start simulated_mr"),
        "--lambda_simulated": (options.lambda_simulated is not None, warm, "--warm_start simulated_mr"),
        "--epoch": (options.epoch != "latest", options.init_from, "--init_from (a run goes on from its last state)"),
        "--sync_batch_norm": (options.sync_batch_norm, options.norm == "batch", "--norm batch"),
        "--display_start": (options.display_start, options.display_id, "--display_id 1"),
        "--display_env": (options.display_env, options.display_id, "--display_id 1"),
    }
    for name, (given, used, way) in needs.items():
        if given and not used:
            parser.error(f"{name} does nothing without {way}")
    options.shape_extractor = options.shape_extractor or options.dataroot / FOLDER_NAME
    options.load_size = options.load_size or 286
    options.crop_size = options.crop_size or 256
    options.lr_decay_iters = options.lr_decay_iters or 50
    defaults = {"n_epochs_warm": 10, "warm_lr": 1e-3, "lambda_simulated": 10.0}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value if warm else 0)
    if options.n_epochs_warm + options.n_epochs + options.n_epochs_decay < 1:
        parser.error("--n_epochs and --n_epochs_decay: expected at least one epoch in all")
    if options.init_from and options.continue_train:
        parser.error("--init_from and --continue_train: expected one of them; --init_from starts a new run")
    if options.sync_batch_norm and options.device.type != "cuda":
        parser.error(f"--sync_batch_norm: {options.device} cannot; it needs GPUs, one for each process of torchrun")
    if options.beta1 >= 1:
        parser.error(f"--beta1 {options.beta1}: expected a number from 0 to below 1")
    options.mr_window = mr_window_rule(parser, options.mr_window)
    options.ct_map = ct_map(parser, options)
    options.display_window = checked(parser, parse_display_window, options.display_window)
    if options.display_start:
        options.display_server = local_server(parser, options.display_server)
    options.augmentation = checked(
        parser, Augmentation, options.preprocess, options.load_size, options.crop_size, options.flip,
        options.rotate, options.zoom,
    )  # fmt: skip
    if warm and options.preprocess == "resize_and_crop":
        parser.error("--warm_start needs the pixel size, which --preprocess resize_and_crop changes; use body_crop")
    return options
