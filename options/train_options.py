"""Options of `train.py`. Names are those of pytorch-CycleGAN-and-pix2pix; the published ones are aliases."""

import argparse
from pathlib import Path

from data.augmentation import PREPROCESS, Augmentation
from models.losses import GAN_MODES, SHAPE_LOSSES
from models.networks import DISCRIMINATORS, GENERATORS, INITIALISATIONS, NORMS, UPSAMPLINGS
from models.schedules import POLICIES
from options.base_options import (
    add_ct_map,
    base_parser,
    checked,
    ct_map,
    experiment_name,
    finish,
    mr_window_rule,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
)


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `train.py`."""
    parser = base_parser("train.py", "Train an unpaired MR to CT model.")
    _add_data(parser)
    _add_networks(parser)
    _add_losses(parser)
    _add_shape(parser)
    _add_schedule(parser)
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
    data.add_argument("--num_threads", "--nThreads", type=nonnegative_int, default=2, help="processes that load slices")
    data.add_argument("--max_dataset_size", type=positive_int, help="at most this many samples an epoch")
    data.add_argument("--preprocess", choices=PREPROCESS, default="none", help="none takes slices as prepared")
    data.add_argument(
        "--load_size", "--loadSize", type=positive_int, help="resize_and_crop: resize to this first (286)"
    )
    data.add_argument("--crop_size", "--fineSize", type=positive_int, help="crop, resize_and_crop: random crop (256)")
    data.add_argument(
        "--flip", action="store_true", help="mirror left and right at random: for limbs, not for whole bodies"
    )
    data.add_argument(
        "--mr_window", nargs="+", default=["percentile"], metavar="W", help="percentile (each volume's own) or LO HI"
    )
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
        default=Path("checkpoints/shape_extractor"),
        help="its file, or folder of its run",
    )


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
    schedule.add_argument("--seed", type=nonnegative_int, default=0, help="of weights, order and augmentation")
    schedule.add_argument("--init_from", type=experiment_name, metavar="NAME", help="start a new run from this model")
    schedule.add_argument("--continue_train", action="store_true", help="go on from the last saved state of --name")
    schedule.add_argument("--print_freq", type=positive_int, default=100, help="steps between two lines of losses")
    schedule.add_argument("--display_freq", type=positive_int, default=400, help="steps between two pictures")
    schedule.add_argument("--save_latest_freq", type=positive_int, default=5000, help="steps between two saved states")
    schedule.add_argument(
        "--save_epoch_freq", type=positive_int, default=5, help="epochs between two kept sets of weights"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options; nothing changes them afterwards.

    `mr_window` is 'percentile' or (low, high), `ct_map` the `IntensityMap` of `--ct_window` or `--ct_transfer`, and
    `augmentation` that of `--preprocess` and what belongs to it.
    """
    parser = train_parser()
    options = finish(parser, arguments)
    if options.n_epochs + options.n_epochs_decay < 1:
        parser.error("--n_epochs and --n_epochs_decay: expected at least one epoch in all")
    if options.n_layers_D != 3 and options.netD != "n_layers":
        parser.error(f"--n_layers_D {options.n_layers_D} needs --netD n_layers")
    needs = {
        "--load_size": (options.load_size, options.preprocess == "resize_and_crop", "--preprocess resize_and_crop"),
        "--crop_size": (options.crop_size, options.preprocess != "none", "--preprocess crop or resize_and_crop"),
        "--lr_decay_iters": (options.lr_decay_iters, options.lr_policy == "step", "--lr_policy step"),
        "--epoch": (options.epoch != "latest", options.init_from, "--init_from (a run goes on from its last state)"),
    }
    for name, (given, used, way) in needs.items():
        if given and not used:
            parser.error(f"{name} does nothing without {way}")
    options.load_size = options.load_size or 286
    options.crop_size = options.crop_size or 256
    options.lr_decay_iters = options.lr_decay_iters or 50
    if options.init_from and options.continue_train:
        parser.error("--init_from and --continue_train: expected one of them; --init_from starts a new run")
    if options.beta1 >= 1:
        parser.error(f"--beta1 {options.beta1}: expected a number from 0 to below 1")
    options.mr_window = mr_window_rule(parser, options.mr_window)
    options.ct_map = ct_map(parser, options)
    options.augmentation = checked(
        parser, Augmentation, options.preprocess, options.load_size, options.crop_size, options.flip
    )
    return options
