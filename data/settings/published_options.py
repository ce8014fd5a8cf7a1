"""What each option of the published commands and of later upstream versions does here.

Upstream is pytorch-CycleGAN-and-pix2pix, of which the published code is a fork of 2018. The defaults are the published
code's. docs/published.md shows this table.
"""

import string

from data.errors import InputError
from data.settings.published import Command, Line, Published, Recorded, Rule

SAME = Rule("the same")
SIZES = {"--loadSize": "286", "--fineSize": "256"}
# Published names that the parsers know beside today's ones.
NEWER = {
    "--batchSize": "--batch_size", "--loadSize": "--load_size", "--fineSize": "--crop_size",
    "--which_model_netG": "--netG", "--which_model_netD": "--netD", "--which_direction": "--direction",
    "--which_epoch": "--epoch", "--nThreads": "--num_threads", "--niter": "--n_epochs",
    "--niter_decay": "--n_epochs_decay", "--lambda_co_A": "--lambda_correlation_A",
    "--lambda_co_B": "--lambda_correlation_B", "--lambda_Self": "--lambda_shape",
}  # fmt: skip


def _newer(name: str) -> Rule:
    """Return the rule of a published name of a present option."""
    return Rule(f"`{NEWER[name]}`")


def _unneeded(says: str, values: tuple[str, ...], otherwise: str) -> Rule:
    """Return the rule of an option of which some values are not needed and the others are errors."""

    def act(line: Line, name: str, value: str) -> list[str]:
        if value in values:
            return []
        raise InputError(f"{name} {value}: {otherwise}")

    return Rule(says, act)


def _left_out(says: str) -> Rule:
    """Return the rule of an option that is not needed, whatever its value."""
    return Rule(says, lambda line, name, value: [])


def _gone(replacement: str) -> Rule:
    """Return the rule of a removed option."""

    def act(line: Line, name: str, value: str) -> list[str]:
        raise InputError(f"{name} is not supported here: {replacement}")

    return Rule(f"error: {replacement}", act)


def _recorded(setting: str) -> Rule:
    """Return the rule of an option whose value must agree with the model's record."""

    def act(line: Line, name: str, value: str) -> list[str]:
        line.recorded[f"{name} {value}".strip()] = Recorded(setting, value or "False")
        return []

    return Rule("recorded with the model; another value is an error", act)


def _model(line: Line, name: str, value: str) -> None:
    replacements = {
        "pix2pix": "use --model paired: it learns from registered MR and CT with L1 losses, without a discriminator",
        "test": "use test_adapt.py or test_pipeline.py, which take the model's --name",
        "colorization": "slices have no colour; expected cycle_gan, simulated_pairs, refined_pairs, paired or "
        "shape_extractor",
    }
    if value in replacements:
        raise InputError(f"--model {value}: {replacements[value]}")


def _dataset_mode(line: Line, name: str, value: str) -> list[str]:
    if value == ("aligned" if line.method == "paired" else "unaligned"):
        return []
    ways = {
        "aligned": "use --model paired for registered MR and CT",
        "unaligned": "--model paired takes registered MR and CT; use --model cycle_gan for unpaired ones",
    }
    raise InputError(f"--dataset_mode {value}: {ways.get(value, '--model chooses the data; leave it out')}")


def _direction(line: Line, name: str, value: str) -> list[str] | None:
    if line.method == "cycle_gan":
        return None
    if value == "AtoB":
        return []
    raise InputError(f"{name} {value}: --model {line.method} has one direction; use --model cycle_gan")


def _size(line: Line, name: str, value: str) -> list[str] | None:
    how = line.value("--resize_or_crop", "--preprocess")
    load, fine = line.value("--loadSize"), line.value("--fineSize")
    if line.method not in ("cycle_gan", "shape_extractor") or how in ("resize_and_crop", "body_crop"):
        return None
    if how is None and load and load == fine:
        resize = ["--preprocess", "resize_and_crop"] if name == "--loadSize" else []
        return [*resize, "--load_size" if name == "--loadSize" else "--crop_size", value]
    unused = how in (None, "none") or (name == "--loadSize" and how == "crop")
    return [] if unused and value == SIZES[name] else None


def _preprocess(line: Line, name: str, value: str) -> list[str] | None:
    if value.startswith("scale_width"):
        size = "--load_size N --crop_size N with N the new width" if value == "scale_width" else "the same sizes"
        raise InputError(f"{name} {value}: slices are square; use --preprocess resize_and_crop and {size}")
    if name == "--preprocess":
        return None
    line.one_of(name, "--preprocess")
    return ["--preprocess", value]


def _no_dropout(line: Line, name: str, value: str) -> list[str]:
    line.one_of(name, "--use_dropout")
    return []


def _no_flip(line: Line, name: str, value: str) -> list[str]:
    line.one_of(name, "--flip")
    if line.method in ("simulated_pairs", "refined_pairs", "paired"):
        raise InputError(f"--no_flip: --model {line.method} learns from mirrored slices; choose the axes with --flip")
    return []


def _suffix(line: Line, name: str, value: str) -> list[str]:
    bases = line.values("--name")
    if len(bases) != 1:
        raise InputError(f"--suffix {value}: expected one --name, to which it is added")
    if not value:
        return []
    try:
        keys = [key for _, key, _, _ in string.Formatter().parse(value) if key is not None]
        values = {key: _published_value(line, key) for key in keys}
        return ["--name", f"{bases[0]}_{value.format(**values)}"]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"--suffix {value}: expected text with published options in braces, such as {{model}}: {error}; or write "
            "the whole name in --name"
        ) from error


def _published_value(line: Line, key: str) -> str:
    """Return what an option in the braces of `--suffix` was given, under any of its names, or its published default."""
    row = OPTIONS[f"--{key}"]
    names = {row.name, NEWER.get(row.name)} | {old for old, new in NEWER.items() if new == row.name}
    value = line.value(*filter(None, names)) or row.default
    if not value:
        raise KeyError(key)
    return value


def _display_id(line: Line, name: str, value: str) -> list[str] | None:
    return ["--display_id", "0"] if value.startswith("-") and value[1:].isdigit() else None


def _visdom(line: Line, name: str, value: str) -> list[str] | None:
    shown = line.value("--display_id")
    return [] if shown is not None and shown.lstrip("-").isdigit() and int(shown) <= 0 else None


def _display_ncols(line: Line, name: str, value: str) -> list[str] | None:
    return ["--display_ncols", "1"] if value.lstrip("-").isdigit() and int(value) <= 0 else None


def _update_html_freq(line: Line, name: str, value: str) -> list[str]:
    return [] if line.given("--display_freq") else ["--display_freq", value]


def _epoch_count(line: Line, name: str, value: str) -> list[str]:
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"--epoch_count {value}: expected a whole number of 1 or more")
    before = int(value) - 1
    if line.given("--continue_train") or not before:
        return []
    constant = line.value("--niter", "--n_epochs") or ("100" if line.method == "cycle_gan" else None)
    if constant is None or not constant.isdigit() or before > int(constant):
        raise InputError(
            f"--epoch_count {value}: a new run begins at epoch 1; set its length with --n_epochs (constant "
            "learning rate) and --n_epochs_decay (falling learning rate)"
        )
    return ["--n_epochs", str(int(constant) - before)]


def _epoch(line: Line, name: str, value: str) -> list[str] | None:
    if line.given("--continue_train"):
        if value == "latest":
            return []
        raise InputError(
            f"{name} {value} does nothing without --init_from: --continue_train resumes from the last saved state; to "
            f"begin a new run from weights of an epoch: --init_from {line.value('--name') or 'NAME'} --epoch {value} "
            "--name NEW"
        )
    return [] if name == "--which_epoch" and value == "latest" and not line.given("--init_from") else None


def _no_lsgan(line: Line, name: str, value: str) -> list[str]:
    line.one_of(name, "--gan_mode")
    if line.method != "cycle_gan":
        raise InputError(f"--no_lsgan: --model {line.method} has no adversarial loss; leave it out")
    return ["--gan_mode", "vanilla"]


def _limit(line: Line, name: str, value: str) -> list[str] | None:
    return [] if value == "inf" else None


def _lr_policy(line: Line, name: str, value: str) -> list[str] | None:
    return ["--lr_policy", "linear"] if value == "lambda" else None


def _lr_decay_iters(line: Line, name: str, value: str) -> list[str] | None:
    return [] if value == "50" and line.value("--lr_policy") != "step" else None


def _init_gain(line: Line, name: str, value: str) -> list[str] | None:
    return [] if value == "0.02" and line.value("--init_type") == "kaiming" else None


def _dataroot(line: Line, name: str, value: str) -> list[str]:
    ours = "--input" if line.command == Command.ADAPT else "--input_dir"
    line.one_of(name, ours)
    return [ours, value]


def _number(line: Line, name: str, value: str) -> list[str] | None:
    """Limit a cohort to a number of volumes; one patient needs no limit."""
    if value == "inf":
        return []
    if line.command == Command.ADAPT:
        if not value.isdigit() or int(value) < 1:
            raise InputError(f"{name} {value}: expected a whole number of 1 or more; one patient is converted")
        return []
    if name != "--ntest":
        return None
    return [] if line.given("--how_many", "--num_test") else ["--num_test", value]


def _model_suffix(line: Line, name: str, value: str) -> list[str]:
    """Take `_A` for the generator of the run's own direction, and `_B` for the one back, of a run from MR to CT."""
    said = line.value("--direction", "--which_direction")
    if value not in ("", "_A", "_B"):
        raise InputError(f"{name} {value}: expected _A or _B: a run has the generators G_A and G_B")
    if value == "_B" and said == "AtoB":
        raise InputError(
            f"{name} _B and --direction AtoB: expected one of them; G_B makes MR from CT, --direction BtoA"
        )
    if value == "_B":
        way = "its G_B makes CT from MR: use --direction AtoB"
        line.recorded[f"{name} _B"] = Recorded("direction", "AtoB", way)
        return [] if said else ["--direction", "BtoA"]
    if value == "_A" and said:
        line.recorded[f"{name} _A"] = Recorded("direction", said)
    return []


def _threads(line: Line, name: str, value: str) -> list[str] | None:
    return [] if line.command == Command.ADAPT else None


_CHANNELS = _unneeded(
    "1: not needed", ("1",),
    "slices are gray; the data set says how many contrasts there are (--mr NAME=GLOB of scripts.prepare_dataset), "
    "and --slab how many neighbouring slices",
)  # fmt: skip
_NOTHING = _left_out("not needed: in use there is no discriminator and nothing to initialise")
_FRAME = _left_out("not needed: slices are prepared as the model records")
_UNSEEN = _left_out("not needed: visdom shows trainings only")
_VERBOSE = _left_out("not needed: all messages are always shown")
_PARALLEL = Rule("`--num_threads` of test_pipeline.py", _threads)
_MANY = Rule("`--num_test` of test_pipeline.py; test_adapt.py always converts one patient", _number)
_ITERATION = _unneeded("0: not needed", ("0",), "weights are kept by epoch; use --epoch")
_VISDOM = Rule("the same; left out with --display_id 0 or below", _visdom)
_WANDB = _gone("use --display_id 1 for visdom; losses.jsonl has all values")
_DIRECTION = Rule("`--direction`; methods other than cycle_gan always have AtoB", _direction)
_WAY = Rule("`--direction`: AtoB makes CT from MR, BtoA MR from CT; by default what the model was trained for")
_PREPROCESS = Rule("`--preprocess`; for scale_width an error names resize_and_crop", _preprocess)
_ROOT = Rule("`--input` of test_adapt.py, `--input_dir` of test_pipeline.py", _dataroot)
_SUFFIX = Rule("`--name NAME_SUFFIX`, with the options in braces filled in", _suffix)
_SIZE = (
    "; 286 and 256 are not needed: prepared slices keep their size, and images of a folder are resized to 256. The "
    "same size in both, without --preprocess, resizes to it"
)


OPTIONS = {row.name: row for row in (
    Published("--dataroot", "./datasets/MR2CT/", SAME, _ROOT),
    Published("--batchSize", "1", _newer("--batchSize"), _newer("--batchSize")),
    Published("--loadSize", "286", Rule("`--load_size`" + _SIZE, _size), _FRAME),
    Published("--fineSize", "256", Rule("`--crop_size`" + _SIZE, _size), _FRAME),
    Published("--input_nc", "1", _CHANNELS, _recorded("input_nc")),
    Published("--output_nc", "1", _CHANNELS, _recorded("output_nc")),
    Published("--ngf", "64", SAME, _recorded("ngf")),
    Published("--ndf", "64", SAME, _NOTHING),
    Published("--which_model_netD", "basic", _newer("--which_model_netD"), _NOTHING),
    Published("--which_model_netG", "resnet_9blocks", _newer("--which_model_netG"), _recorded("netG")),
    Published("--n_layers_D", "3", SAME, _NOTHING),
    Published("--gpu_ids", "2", Rule("the same, of one GPU; several by torchrun"), Rule("the same, of one GPU")),
    Published("--name", "Self+Lcc_finetune", Rule("the same; it must be given"), Rule("the same; it must be given")),
    Published("--dataset_mode", "unaligned", Rule(
        "unaligned: not needed (with --model paired: aligned)", _dataset_mode,
    ), _unneeded("single, unaligned: not needed, the MR is always read alone", ("single", "unaligned"),
               "one MR is converted by itself; a true CT to score against is --reference")),
    Published("--model", "cycle_gan", Rule(
        "the same; for pix2pix, test and colorization an error names the replacement", _model,
    ), _unneeded("test, cycle_gan, pix2pix: not needed, the model's own generator is used",
               ("test", "cycle_gan", "pix2pix"), "the model is chosen with --name; leave it out")),
    Published("--which_direction", "AtoB", _DIRECTION, _WAY),
    Published("--nThreads", "4", _newer("--nThreads"), _PARALLEL),
    Published("--checkpoints_dir", "./checkpoints", SAME, SAME),
    Published("--norm", "instance", SAME, _recorded("norm")),
    Published("--serial_batches", None, Rule("the same, with --model cycle_gan"), _left_out(
        "not needed: slices are always taken in order",
    )),
    Published("--display_winsize", "256", _unneeded(
        "256: not needed", ("256",), "pictures have the size of the slices, and pages zoom; leave it out",
    ), _UNSEEN),
    Published("--display_id", "1", Rule("the same, 0 by default; below 0 is 0", _display_id), _UNSEEN),
    Published("--display_server", "http://localhost", _VISDOM, _UNSEEN),
    Published("--display_env", "lib", _VISDOM, _UNSEEN),
    Published("--display_port", "8097", _VISDOM, _UNSEEN),
    Published("--no_dropout", None, Rule(
        "not needed; an error with --use_dropout", _no_dropout,
    ), _recorded("use_dropout")),
    Published("--max_dataset_size", "inf", Rule("the same; inf: not needed", _limit), _unneeded(
        "inf: not needed", ("inf",), "volumes are converted whole; --num_test of test_pipeline.py limits their number",
    )),
    Published("--resize_or_crop", "resize_and_crop", _PREPROCESS, _FRAME),
    Published("--no_flip", None, Rule(
        "not needed with cycle_gan; an error with --flip and with methods that mirror", _no_flip,
    ), _left_out("not needed: nothing is mirrored at random")),
    Published("--init_type", "normal", SAME, _NOTHING),
    Published("--init_gain", "0.02", Rule("the same; 0.02 is left out with --init_type kaiming", _init_gain), _NOTHING),
    Published("--verbose", None, _VERBOSE, _VERBOSE),
    Published("--suffix", "", _SUFFIX, _SUFFIX),
    Published("--display_freq", "100", Rule("the same, in steps; 400 by default")),
    Published("--display_ncols", "8", Rule("the same, 4 by default; 0 and below: 1, an image a row", _display_ncols)),
    Published("--update_html_freq", "1000", Rule(
        "`--display_freq`, where that is not given: pages and visdom get pictures together", _update_html_freq,
    )),
    Published("--print_freq", "100", Rule("the same, in steps")),
    Published("--save_latest_freq", "5000", Rule("the same, in steps, or in minutes as 10min")),
    Published("--save_epoch_freq", "2", Rule("the same, 5 by default")),
    Published("--continue_train", None, Rule("the same, off by default (the published code could not switch it off)")),
    Published("--epoch_count", "1", Rule(
        "not needed with --continue_train: the state records its epoch; for a new run N shortens `--n_epochs` by N - 1",
        _epoch_count,
    )),
    Published("--phase", "train", _unneeded(
        "train: not needed", ("train",), "trainA and trainB are trained on; --val validates, test_adapt.py converts",
    ), _unneeded("test: not needed", ("test",), "chosen with --input or --input_dir; leave it out")),
    Published("--which_epoch", "latest", Rule(
        "`--epoch` of --init_from; latest: not needed; others with --continue_train: an error names --init_from",
        _epoch,
    ), _newer("--which_epoch")),
    Published("--niter", "100", _newer("--niter")),
    Published("--niter_decay", "100", _newer("--niter_decay")),
    Published("--beta1", "0.5", SAME),
    Published("--lr", "0.0002", SAME),
    Published("--no_lsgan", None, Rule("`--gan_mode vanilla`", _no_lsgan)),
    Published("--pool_size", "50", SAME),
    Published("--no_html", None, SAME, Rule("the same in test_pipeline.py")),
    Published("--lr_policy", "lambda", Rule("the same; lambda is `linear`", _lr_policy)),
    Published("--lr_decay_iters", "50", Rule("the same; 50 is left out without --lr_policy step", _lr_decay_iters)),
    Published("--lambda_A", "10.0", SAME),
    Published("--lambda_B", "10.0", SAME),
    Published("--lambda_identity", "0.5", SAME),
    Published("--lambda_co_A", "2", _newer("--lambda_co_A")),
    Published("--lambda_co_B", "2", _newer("--lambda_co_B")),
    Published("--lambda_Self", "10.0", _newer("--lambda_Self")),
    # The published test commands.
    Published("--ntest", "inf", None, _MANY),
    Published("--results_dir", "./results/", None, SAME),
    Published("--aspect_ratio", "1.0", None, _unneeded(
        "1: not needed", ("1", "1.0"),
        "results lie on the MR's own grid, and pictures show its true proportions; leave it out",
    )),
    Published("--how_many", "50", None, _MANY),
    Published("--model_suffix", "", None, Rule(
        "empty or _A: not needed, latest_net_G_A.pth is used; _B: latest_net_G_B.pth, `--direction BtoA`",
        _model_suffix,
    )),
    # Later upstream versions.
    Published("--netG", "resnet_9blocks", SAME, _recorded("netG")),
    Published("--netD", "basic", SAME, _NOTHING),
    Published("--direction", "AtoB", _DIRECTION, _WAY),
    Published("--num_threads", "4", SAME, _PARALLEL),
    Published("--batch_size", "1", SAME, SAME),
    Published("--load_size", "286", Rule("the same, with --preprocess resize_and_crop"), _FRAME),
    Published("--crop_size", "256", Rule("the same, with --preprocess"), _FRAME),
    Published("--preprocess", "resize_and_crop", _PREPROCESS, _FRAME),
    Published("--epoch", "latest", Rule(
        "weights of --init_from; latest is left out with --continue_train", _epoch,
    ), SAME),
    Published("--load_iter", "0", _ITERATION, _ITERATION),
    Published("--gan_mode", "lsgan", Rule("the same: lsgan or vanilla")),
    Published("--n_epochs", "100", SAME),
    Published("--n_epochs_decay", "100", SAME),
    Published("--save_by_iter", None, _gone(
        "--save_latest_freq saves the whole state, --save_epoch_freq keeps weights",
    )),
    Published("--lambda_L1", "100.0", _gone("it belongs to pix2pix; use --model paired, with --lambda_hu")),
    Published("--use_wandb", None, _WANDB),
    Published("--wandb_project_name", "CycleGAN-and-pix2pix", _WANDB),
    Published("--num_test", "50", None, _MANY),
    Published("--eval", None, None, _left_out("not needed: networks in use are always in evaluation mode")),
)}  # fmt: skip
