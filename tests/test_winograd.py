"""Winograd's convolutions: the transforms against numpy, the layers against torch, and whole generators."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.networks import Architecture, build_generator
from models.winograd import WinogradConv2d, speed_up, transforms


def test_the_transforms_are_a_correlation():
    in_tile, kernel, out_tile = (matrix.numpy() for matrix in transforms())
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=6), rng.normal(size=3)
    np.testing.assert_allclose(out_tile @ ((kernel @ g) * (in_tile @ d)), np.correlate(d, g, "valid"), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5, 18, 18), (2, 3, 7, 12), (1, 4, 3, 3), (3, 2, 21, 9)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_is_torch_s(shape, bias, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 7, 3, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(WinogradConv2d(conv, torch.float64)(x), conv(x), rtol=0, atol=1e-12)
    single = WinogradConv2d(conv, torch.float32)(x.float())
    torch.testing.assert_close(single.double(), conv(x), rtol=0, atol=2e-5)


def test_half_precision_rounds_little_more_than_torch_s_own():
    """Rectified inputs of many channels, as in the residual blocks; errors relative to the outputs' spread."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 64, 3).requires_grad_(False)
    x = F.relu(torch.randn(1, 128, 34, 34))
    exact = conv(x)
    errors = [(y.float() - exact).std() / exact.std() for y in (WinogradConv2d(conv)(x), conv.bfloat16()(x.bfloat16()))]
    assert errors[0] < 0.015 and errors[0] < 6 * errors[1]


def test_only_convolutions_of_this_kind_are_replaced():
    kinds = {
        nn.Conv2d(2, 2, 3): True,
        nn.Conv2d(2, 2, 3, bias=False): True,
        nn.Conv2d(2, 2, 3, stride=2): False,
        nn.Conv2d(2, 2, 3, padding=1): False,
        nn.Conv2d(2, 2, 3, dilation=2): False,
        nn.Conv2d(2, 2, 3, groups=2): False,
        nn.Conv2d(2, 2, (3, 1)): False,
        nn.Conv2d(2, 2, 7): False,
        nn.ConvTranspose2d(2, 2, 3): False,
        nn.Identity(): False,
    }
    assert [WinogradConv2d.fits(module) for module in kinds] == list(kinds.values())


@pytest.mark.parametrize(
    "name, size, replaced, options",
    [
        ("resnet_9blocks", 40, 18, {}),
        ("resnet_6blocks", 32, 14, {"upsample": "resize"}),
        ("resnet_6blocks", 32, 12, {"norm": "batch"}),
        ("unet_128", 128, 0, {}),
    ],
)
def test_a_generator_stays_what_it_is(name, size, replaced, options):
    torch.manual_seed(0)
    net = build_generator(Architecture(name, ngf=8, **options)).eval().requires_grad_(False)
    fast = copy.deepcopy(net)
    speed_up(fast)
    layers = [module for module in fast.modules() if isinstance(module, WinogradConv2d)]
    assert len(layers) == replaced
    assert not any(isinstance(module, nn.InstanceNorm2d) for module in fast.modules())
    x = torch.rand(1, 1, size, size) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, found = net(x).float(), fast(x).float()
    exact = net(x)
    assert (found - exact).abs().mean() < 2.5 * (plain - exact).abs().mean() + 1e-4
