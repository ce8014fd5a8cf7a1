"""Generators and discriminators of the CycleGAN, as plain modules with flat arguments.

Images are (N, C, H, W) in [-1, 1]. Layers keep the positions they have in the published networks, so that published
state dicts load by name. Defaults stand in the settings alone.

Sources: Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV
2017 (ResNet generator after Johnson et al., ECCV 2016; training settings); Isola et al., "Image-to-image
translation with conditional adversarial networks", CVPR 2017 (U-Net generator, patch and pixel discriminators).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from inspect import signature

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.settings.declaration import Nature, option
from data.settings.values import positive_int
from models.layers import NORMS, UPSAMPLINGS, ReflectionPad2d, check_size, pick, use_bias
from unet.unet_model import MULTIPLE, UNet


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with reflection padding, added to their input: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int, norm: str, use_dropout: bool) -> None:
        """Build a block of `channels` feature maps."""
        super().__init__()
        norm_layer = pick(NORMS, norm, "norm")

        def convolution() -> list[nn.Module]:
            conv = nn.Conv2d(channels, channels, kernel_size=3, bias=use_bias(norm))
            return [ReflectionPad2d(1), conv, norm_layer(channels)]

        dropout = [nn.Dropout(0.5)] if use_dropout else []
        self.conv_block = nn.Sequential(*convolution(), nn.ReLU(inplace=True), *dropout, *convolution())

    def forward(self, x: Tensor) -> Tensor:
        """Return x + F(x)."""
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Residual generator: two halvings, `n_blocks` residual blocks, two doublings, tanh.

    Maps (N, input_nc, H, W) in [-1, 1] to (N, output_nc, H, W) in [-1, 1]; H and W are multiples of
    4, 8 or more.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int,
        n_blocks: int,
        norm: str,
        use_dropout: bool,
        upsample: str,
    ) -> None:
        """Build the network.

        Args:
            input_nc: channels of the input.
            output_nc: channels of the output.
            ngf: feature maps after the first layer; four times as many in the blocks.
            n_blocks: residual blocks.
            norm: a key of `NORMS`.
            use_dropout: dropout of 0.5 inside each block.
            upsample: a key of `UPSAMPLINGS`; 'resize' leaves no checkerboard.

        Raises:
            InputError: unknown `norm` or `upsample`.
        """
        super().__init__()
        self.multiple = 4
        norm_layer, bias = pick(NORMS, norm, "norm"), use_bias(norm)
        upsampling = pick(UPSAMPLINGS, upsample, "upsampling")
        layers: list[nn.Module] = [ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, kernel_size=7, bias=bias)]
        layers += [norm_layer(ngf), nn.ReLU(inplace=True)]
        for width in (ngf, 2 * ngf):
            layers += [nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1, bias=bias)]
            layers += [norm_layer(2 * width), nn.ReLU(inplace=True)]
        layers += [ResnetBlock(4 * ngf, norm, use_dropout) for _ in range(n_blocks)]
        for width in (4 * ngf, 2 * ngf):
            layers += [upsampling(width, width // 2, 3, bias), norm_layer(width // 2), nn.ReLU(inplace=True)]
        layers += [ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, kernel_size=7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the synthetic image. Raises `InputError` for a size that the network cannot take."""
        check_size(x, "ResNet generator", multiple=self.multiple, minimum=8)
        return self.model(x)


class UnetLevel(nn.Module):
    """One level of the U-Net with its skip: (N, outer_nc, H, W) to (N, 2 * outer_nc, H, W)."""

    def __init__(
        self, outer_nc: int, inner_nc: int, inner: "UnetLevel | None", norm: str, use_dropout: bool, upsample: str
    ) -> None:
        """Build the level around `inner`, the next deeper one; None for the deepest."""
        super().__init__()
        norm_layer, bias = NORMS[norm], use_bias(norm)
        layers = [
            nn.LeakyReLU(0.2),
            nn.Conv2d(outer_nc, inner_nc, kernel_size=4, stride=2, padding=1, bias=bias),
        ]
        # The deepest level may be one pixel, which no norm can take.
        layers += [norm_layer(inner_nc), inner] if inner else []
        upsampled_nc = 2 * inner_nc if inner else inner_nc
        layers += [nn.ReLU(), UPSAMPLINGS[upsample](upsampled_nc, outer_nc, 4, bias), norm_layer(outer_nc)]
        layers += [nn.Dropout(0.5)] if use_dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return skip and processed features, side by side."""
        return torch.cat([x, self.model(x)], dim=1)


class UnetGenerator(nn.Module):
    """U-Net generator that halves its input `depth` times, tanh at the end.

    Maps (N, input_nc, H, W) in [-1, 1] to (N, output_nc, H, W) in [-1, 1]; H and W are multiples of
    2 ** depth.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int,
        depth: int,
        norm: str,
        use_dropout: bool,
        upsample: str,
    ) -> None:
        """Build the network.

        Args:
            input_nc: channels of the input.
            output_nc: channels of the output.
            ngf: feature maps after the first layer; up to eight times as many deeper down.
            depth: halvings: 7 for 'unet_128', 8 for 'unet_256'.
            norm: a key of `NORMS`.
            use_dropout: dropout of 0.5 in the levels that keep 8 * ngf maps, but for the deepest.
            upsample: a key of `UPSAMPLINGS`.

        Raises:
            InputError: unknown `norm` or `upsample`.
        """
        super().__init__()
        pick(NORMS, norm, "norm")
        upsampling = pick(UPSAMPLINGS, upsample, "upsampling")
        self.multiple = 2**depth
        widths = [ngf * min(2**level, 8) for level in range(depth)]
        inner: UnetLevel | None = None
        for level in reversed(range(1, depth)):
            dropout = use_dropout and 4 <= level < depth - 1
            inner = UnetLevel(widths[level - 1], widths[level], inner, norm, dropout, upsample)
        assert inner is not None, "there are several levels"
        first = nn.Conv2d(input_nc, ngf, kernel_size=4, stride=2, padding=1, bias=use_bias(norm))
        last = upsampling(2 * ngf, output_nc, 4, True)
        # Published names begin with 'model.model'.
        self.model = nn.Sequential(OrderedDict(model=nn.Sequential(first, inner, nn.ReLU(), last, nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        """Return the synthetic image. Raises `InputError` for a size that the network cannot take."""
        check_size(x, "U-Net generator", multiple=self.multiple, minimum=self.multiple)
        return self.model(x)


class ResizingUnetGenerator(nn.Module):
    """The four-level U-Net of `unet/` as a generator: no information passes through one pixel, any size is taken.

    Maps (N, input_nc, H, W) to (N, output_nc, H, W), both in [-1, 1]. It upsamples bilinearly, without checkerboards.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int,
        norm: str,
        use_dropout: bool,
        upsample: str,
    ) -> None:
        """Build the network of `ngf` features at full resolution. Raises `InputError` for what it does not have."""
        super().__init__()
        if use_dropout or upsample != "resize":
            raise InputError(
                "--netG unet resizes bilinearly and has no dropout: use --upsample resize, no --use_dropout"
            )
        self.multiple, self.norm = MULTIPLE, norm
        self.net = UNet(input_nc, output_nc, ngf, norm=pick(NORMS, norm, "norm"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the synthetic image.

        Raises:
            InputError: the last level has one pixel, of which the norm cannot take statistics.
        """
        alone = self.norm == "instance" or (self.norm == "batch" and self.training and len(x) == 1)
        if alone and max(x.shape[-2:]) <= MULTIPLE:
            height, width = x.shape[-2:]
            raise InputError(
                f"--netG unet: input of {height} x {width} pixels, {len(x)} a batch; --norm {self.norm} expects more "
                f"than {MULTIPLE} pixels: use a larger --crop_size"
            )
        return torch.tanh(self.net(x))


class PatchDiscriminator(nn.Module):
    """PatchGAN: one unbounded score (logit) for each overlapping patch of the input.

    Maps (N, input_nc, H, W) in [-1, 1] to (N, 1, h, w) with h = floor(H / 2**n_layers) - 2, and w alike; H
    and W are at least 3 * 2**n_layers. The receptive field of a score is a square of 16, 34, 70, 142 or 286
    pixels for `n_layers` of 1 to 5, so 70 for 'basic'. (Instance norm lets mean and variance of whole feature
    maps in besides.)
    """

    def __init__(self, input_nc: int, ndf: int, n_layers: int, norm: str) -> None:
        """Build the network.

        Args:
            input_nc: channels of the input.
            ndf: feature maps after the first layer, doubled by each further layer up to eight times.
            n_layers: layers that halve the image; sets the receptive field.
            norm: a key of `NORMS`.

        Raises:
            InputError: unknown `norm`, or `n_layers` below 1.
        """
        super().__init__()
        norm_layer = pick(NORMS, norm, "norm")
        if n_layers < 1:
            raise InputError(f"patch discriminator: n_layers is {n_layers}; expected 1 or more")
        self.minimum = 3 * 2**n_layers
        widths = [ndf * min(2**layer, 8) for layer in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, kernel_size=4, stride=2, padding=1)]
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        for layer in range(1, n_layers + 1):
            stride = 2 if layer < n_layers else 1
            conv = nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=use_bias(norm))
            layers += [conv, norm_layer(widths[layer]), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(widths[-1], 1, kernel_size=4, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of scores. Raises `InputError` for a size that the network cannot take."""
        check_size(x, "patch discriminator", multiple=1, minimum=self.minimum)
        return self.model(x)


class PixelDiscriminator(nn.Module):
    """Scores each pixel by its own value: (N, input_nc, H, W) in [-1, 1] to unbounded (N, 1, H, W).

    The receptive field is 1 pixel. (Instance norm lets mean and variance of whole feature maps in besides.)
    """

    def __init__(self, input_nc: int, ndf: int, norm: str) -> None:
        """Build the network with `ndf`, then 2 * `ndf` maps. Raises `InputError` for an unknown `norm`."""
        super().__init__()
        norm_layer, bias = pick(NORMS, norm, "norm"), use_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(input_nc, ndf, kernel_size=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, 2 * ndf, kernel_size=1, bias=bias),
            norm_layer(2 * ndf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * ndf, 1, kernel_size=1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of scores. Raises `InputError` for a size that the network cannot take."""
        check_size(x, "pixel discriminator", multiple=1, minimum=2)
        return self.net(x)


GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "resnet_9blocks": partial(ResnetGenerator, n_blocks=9),
    "resnet_6blocks": partial(ResnetGenerator, n_blocks=6),
    "unet": ResizingUnetGenerator,
    "unet_128": partial(UnetGenerator, depth=7),
    "unet_256": partial(UnetGenerator, depth=8),
}

DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "basic": partial(PatchDiscriminator, n_layers=3),
    "n_layers": PatchDiscriminator,
    "pixel": PixelDiscriminator,
}


@dataclass(frozen=True)
class GeneratorSettings:
    """generator."""

    netG: str = option(
        "resnet_9blocks", nature=Nature.FIXED, choices=tuple(GENERATORS), aliases=("--which_model_netG",),
        first=True, help="architecture of the generators",
    )  # fmt: skip
    ngf: int = option(
        64, nature=Nature.FIXED, parse=positive_int, first=True, help="features after the first layer of the generators"
    )
    norm: str = option(
        "instance", nature=Nature.FIXED, choices=tuple(NORMS),
        help="normalisation layers of generators and discriminators",
    )  # fmt: skip
    use_dropout: bool = option(False, nature=Nature.FIXED, help="use dropout in the inner blocks of the generators")
    upsample: str = option(
        "transposed", nature=Nature.FIXED, choices=tuple(UPSAMPLINGS),
        help="how generators upsample; resize avoids checkerboard patterns",
    )  # fmt: skip


@dataclass(frozen=True)
class Architecture(GeneratorSettings):
    """One generator: all that its weights depend on beside their training. It is kept in `inference.json`.

    Attributes:
        input_nc, output_nc: channels, beside what its settings say.
    """

    input_nc: int = 1
    output_nc: int = 1

    @classmethod
    def of(cls, settings: GeneratorSettings, input_nc: int, output_nc: int) -> "Architecture":
        """Return the architecture of a run's settings, with the given channels."""
        own = {field.name: getattr(settings, field.name) for field in fields(GeneratorSettings)}
        return cls(**own, input_nc=input_nc, output_nc=output_nc)

    @cached_property
    def multiple(self) -> int:
        """What the height and width of the generator's images are multiples of."""
        with torch.device("meta"):
            multiple = build_generator(self).multiple
        assert isinstance(multiple, int)
        return multiple

    def frame_size(self, size: int) -> int:
        """Return the smallest side, of at least `size` pixels, of images that the generator takes."""
        return math.ceil(size / self.multiple) * self.multiple


def build_generator(architecture: Architecture) -> nn.Module:
    """Return a generator. It gets those of the architecture's values that it takes.

    Raises:
        InputError: unknown `netG`, `norm` or `upsample`, a combination that the generator does not have, or a value
            other than the default that it does not take.
    """
    make = pick(GENERATORS, architecture.netG, "generator")
    taken = signature(make).parameters
    for field in fields(architecture):
        value = getattr(architecture, field.name)
        if field.name not in ("netG", *taken) and value != field.default:
            raise InputError(f"--{field.name} {value} does nothing to --netG {architecture.netG}")
    return make(**{name: value for name, value in asdict(architecture).items() if name in taken})


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings:
    """discriminators."""

    netD: str = option(
        "basic", nature=Nature.FIXED, choices=tuple(DISCRIMINATORS), aliases=("--which_model_netD",),
        help="architecture of the discriminators",
    )  # fmt: skip
    ndf: int = option(
        64, nature=Nature.FIXED, parse=positive_int, help="features after the first layer of the discriminators"
    )
    n_layers_D: int = option(
        3, nature=Nature.FIXED, parse=positive_int, help="number of strided layers of --netD n_layers"
    )


def build_discriminator(
    name: str,
    input_nc: int = Architecture.output_nc,
    ndf: int = DiscriminatorSettings.ndf,
    n_layers: int = DiscriminatorSettings.n_layers_D,
    norm: str = GeneratorSettings.norm,
) -> nn.Module:
    """Return the discriminator `name`, a key of `DISCRIMINATORS`. Arguments as in `PatchDiscriminator`.

    Raises:
        InputError: unknown `name` or `norm`, or an `n_layers` that the discriminator would not follow.
    """
    discriminator = pick(DISCRIMINATORS, name, "discriminator")
    if name == "n_layers":
        return discriminator(input_nc=input_nc, ndf=ndf, n_layers=n_layers, norm=norm)
    if n_layers != DiscriminatorSettings.n_layers_D:
        raise InputError(f"n_layers {n_layers} does nothing to the discriminator {name!r}: choose 'n_layers' for it")
    return discriminator(input_nc=input_nc, ndf=ndf, norm=norm)
