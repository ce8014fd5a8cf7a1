"""Weights on disk: round trips, published files, and files that must be refused."""

import os
import pickle
import random
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data.errors import InputError
from models import state_dicts
from models.networks import DISCRIMINATORS, GENERATORS, Architecture, build_discriminator, build_generator
from models.state_dicts import load_checkpoint, load_network_weights, save_atomically, save_network_weights


def small(norm: str = "instance", ndf: int = 4) -> nn.Module:
    return build_discriminator("basic", ndf=ndf, norm=norm)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Touch:
    """Unpickles by creating a file: what a hostile checkpoint does, harmlessly."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_every_network_round_trips(name, norm, tmp_path):
    def make() -> nn.Module:
        if name in GENERATORS:
            return build_generator(
                Architecture(name, ngf=2, norm=norm, upsample="resize" if name == "unet" else "transposed")
            )
        return build_discriminator(name, ndf=2, norm=norm)

    net, other = make(), make()
    assert not same(net.state_dict(), other.state_dict())
    save_network_weights(net, tmp_path / "net.pth")
    load_network_weights(other, tmp_path / "net.pth")
    assert same(net.state_dict(), other.state_dict())
    assert same(load_checkpoint(tmp_path / "net.pth"), dict(net.state_dict()))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_published_file_with_stale_statistics_loads(zipped, tmp_path):
    net, other = small(), small()
    stale = {}
    for key, value in net.state_dict().items():
        stale[key] = value
        # InstanceNorm2d with track_running_stats stood one place behind these convolutions.
        if key in ("model.2.bias", "model.5.bias", "model.8.bias"):
            norm = f"model.{int(key.split('.')[1]) + 1}."
            stale[norm + "running_mean"] = stale[norm + "running_var"] = torch.ones(len(value))
            stale[norm + "num_batches_tracked"] = torch.tensor(7)
    path = tmp_path / "latest_net_D_A.pth"
    torch.save(stale, path, _use_new_zipfile_serialization=zipped)
    assert len(stale) == len(net.state_dict()) + 9
    load_network_weights(other, path, taken_over=not zipped)
    assert same(net.state_dict(), other.state_dict())


def test_batch_norm_statistics_are_kept_and_needed():
    net, other = small("batch"), small("batch")
    net.train()(torch.randn(2, 1, 32, 32))
    load_network_weights(other, net.state_dict())
    assert torch.equal(other.model[3].running_var, net.model[3].running_var)
    state = net.state_dict()
    del state["model.3.running_var"]
    with pytest.raises(InputError, match=r"missing: model\.3\.running_var:"):
        load_network_weights(other, state)


def test_wrapped_networks_load_and_only_whole_prefixes_are_stripped():
    net = small()
    for wrapped in (
        nn.DataParallel(net),
        torch.compile(net),
        torch.compile(nn.DataParallel(net)),
        nn.DataParallel(torch.compile(net)),
        AveragedModel(net),
        AveragedModel(torch.compile(net)),
    ):
        assert not wrapped.state_dict().keys() & net.state_dict().keys()
        other = small()
        load_network_weights(other, wrapped.state_dict())
        assert same(net.state_dict(), other.state_dict())
    mixed = dict(net.state_dict())
    mixed["module.model.0.weight"] = mixed.pop("model.0.weight")
    with pytest.raises(InputError, match=r"missing: model\.0\.weight; unexpected: module\.model\.0\.weight"):
        load_network_weights(other, mixed)


def test_misfits_name_file_and_keys_and_leave_the_network_alone(tmp_path):
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = dict(small().state_dict())
    del state["model.2.bias"]
    state["model.4.weight"] = torch.zeros(3)
    state["model.5.weight"] = state["model.5.weight"][:, :1]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError) as caught:
        load_network_weights(net, tmp_path / "bad.pth")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bad.pth'}: does not fit PatchDiscriminator: ")
    assert "missing: model.2.bias;" in message
    assert "unexpected: model.4.weight;" in message
    assert "of another shape: model.5.weight (16, 1, 4, 4) instead of (16, 8, 4, 4)" in message
    assert same(net.state_dict(), before)


def test_a_weight_of_another_shape_is_refused_though_it_has_as_many_numbers():
    state = dict(small().state_dict())
    state["model.5.weight"] = state["model.5.weight"].transpose(0, 1)
    with pytest.raises(
        InputError, match=r"of another shape: model\.5\.weight \(8, 16, 4, 4\) instead of \(16, 8, 4, 4\)"
    ):
        load_network_weights(small(), state)


@pytest.mark.parametrize(("saved", "wanted"), [("batch", "instance"), ("instance", "batch"), ("instance", "none")])
def test_weights_of_another_norm_are_refused(saved, wanted):
    with pytest.raises(InputError, match=r"unexpected: model\.[23]\."):
        load_network_weights(small(wanted), small(saved).state_dict())


def test_long_lists_of_keys_are_cut():
    with pytest.raises(InputError, match=r"missing: (model[.\w]+, ){9}model[.\w]+ and \d+ more"):
        load_network_weights(build_generator(Architecture("resnet_6blocks", ngf=2)), small().state_dict())


def test_empty_state_dict_is_refused():
    with pytest.raises(InputError, match=r"state dict: does not fit .*missing"):
        load_network_weights(small(), {})


@pytest.mark.parametrize("content", [{"epoch": 3}, {1: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    assert load_checkpoint(tmp_path / "other.pth") == content
    with pytest.raises(InputError, match=r"other\.pth: holds more than named tensors"):
        load_network_weights(small(), tmp_path / "other.pth")


def test_checkpoint_that_is_no_mapping_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: holds a list"):
        load_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize("form", ["zip", "before torch 1.6", "bare pickle"])
def test_code_in_a_file_is_refused_and_not_run(form, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "hostile.pth"
    content = {"model.0.weight": torch.zeros(1), "extra": Touch(ran)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Touch(ran), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=r"hostile\.pth: cannot be read: .*mkdir") as caught:
        load_network_weights(small(), path, taken_over=True)
    assert "weights_only" not in str(caught.value)
    assert not ran.exists()
    # The file does bite whoever loads it without protection.
    if form == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(share, zipped, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    load_network_weights(small(), path, taken_over=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"net\.pth: cannot be read"):
        load_network_weights(small(), path, taken_over=True)


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def blank(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start : start + 32] = bytes(len(data[start : start + 32]))


def swap(data: bytearray, rng: random.Random) -> None:
    a, b = (rng.randrange(len(data) - 16) for _ in "ab")
    data[a : a + 16], data[b : b + 16] = data[b : b + 16], data[a : a + 16]


@pytest.mark.parametrize("damage", [flip, blank, swap])
def test_damage_anywhere_in_a_file_is_refused_or_changes_nothing(damage, tmp_path):
    """What may change without being noticed is filling between the parts of the file."""
    content = {"weight": torch.arange(512.0).reshape(2, 256), "step": torch.tensor(3), "epoch": 5}
    path = tmp_path / "net.pth"
    torch.save(content, path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        damage(data, rng)
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except InputError as error:
            assert "net.pth: cannot be read" in str(error)
            refused += 1
        else:
            assert found.keys() == content.keys() and found["epoch"] == 5
            assert torch.equal(found["weight"], content["weight"]) and torch.equal(found["step"], content["step"])
    assert refused > 75  # the numbers alone are more than half of the file


def test_a_damaged_number_is_named_by_its_part(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.full((64,), 1.5)}, path)
    whole = path.read_bytes()
    assert whole.count(np.float32(1.5).tobytes() * 64) == 1
    path.write_bytes(
        whole.replace(np.float32(1.5).tobytes() * 64, np.float32(1.75).tobytes() + np.float32(1.5).tobytes() * 63)
    )
    assert torch.load(path, weights_only=True)["weight"][0] == 1.75  # torch by itself does not notice
    with pytest.raises(
        InputError, match=r"net\.pth: cannot be read: it is damaged: its part net/data/0 has the wrong checksum"
    ):
        load_checkpoint(path)


def test_a_file_without_checksums_is_taken_over_with_a_warning_and_never_used_as_it_is(tmp_path, caplog):
    path, net = tmp_path / "old.pth", small()
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"old\.pth: .*before 1\.6, which has no checksums.*scripts\.import_generator"):
        load_network_weights(small(), path)
    other = small()
    load_network_weights(other, path, taken_over=True)
    assert same(net.state_dict(), other.state_dict())
    assert "old.pth: is in the format of torch before 1.6, which has no checksums" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    net, state = small(), dict(small().state_dict())
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state["model.2.bias"] = torch.full_like(state["model.2.bias"], 0)
    state["model.2.bias"][1] = value
    with pytest.raises(InputError, match=r"not finite .*: model\.2\.bias; .* in any precision") as caught:
        load_network_weights(net, state)
    assert "fp32" not in str(caught.value) and same(net.state_dict(), before)


@pytest.mark.parametrize("colour", ["in", "out", "both"])
def test_weights_of_a_colour_network_are_named_as_such(colour):
    net = build_generator(Architecture("resnet_6blocks", ngf=2))
    state = dict(net.state_dict())
    first, last = "model.1.weight", [key for key in state if key.endswith("weight")][-1]
    if colour != "out":
        state[first] = state[first].repeat(1, 3, 1, 1)
    if colour != "in":
        state[last] = state[last].repeat(3, 1, 1, 1)
    with pytest.raises(InputError, match=r"network for colour images, 3 channels, and slices have 1.*--input_nc 1"):
        load_network_weights(net, state)


@pytest.mark.parametrize(
    "content", [b"hello world", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", bytes(100), b"\x80\x02."]
)
def test_foreign_file_is_refused(content, tmp_path):
    (tmp_path / "foreign.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"foreign\.pth: cannot be read"):
        load_checkpoint(tmp_path / "foreign.pth")


def test_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_network_weights(small(), path)


def test_written_file_has_ordinary_permissions_and_no_companions(tmp_path):
    path = tmp_path / "run" / "latest_net_G_A.pth"
    save_network_weights(small(), path)
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert [file.name for file in path.parent.iterdir()] == ["latest_net_G_A.pth"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.pth"
    save_atomically({"epoch": 1}, path)

    def full(obj, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_dicts.torch, "save", full)
    with pytest.raises(InputError, match=r"state\.pth: cannot be written: .*No space left"):
        save_atomically({"epoch": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, events = tmp_path / "state.pth", []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", os.fstat(fd).st_size)), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append(("replace", a.stat().st_size)), replace(a, b))[1])
    save_atomically({"weights": torch.zeros(1000)}, path)
    assert events == [("fsync", path.stat().st_size), ("replace", path.stat().st_size)]


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), Path("x")], ids=["scalar", "array", "path"])
def test_what_could_not_be_loaded_again_is_not_written(value, tmp_path):
    save_atomically({"value": 1.5}, tmp_path / "state.pth")
    with pytest.raises(TypeError, match="which loading refuses"):
        save_atomically({"value": value}, tmp_path / "state.pth")
    assert load_checkpoint(tmp_path / "state.pth") == {"value": 1.5}


def test_only_regular_files_are_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(InputError, match="not a regular file"):
            save_atomically({"epoch": 1}, path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_unwritable_place_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_atomically({"epoch": 1}, tmp_path / "file" / "state.pth")


def test_training_state_round_trips(tmp_path):
    net = small()
    adam = torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999))
    net(torch.randn(1, 1, 32, 32)).sum().backward()
    adam.step()
    state = {"epoch": 3, "optimiser": adam.state_dict(), "random": torch.get_rng_state(), "metric": 1.5, "best": None}
    save_atomically(state, tmp_path / "state.pth")
    loaded = load_checkpoint(tmp_path / "state.pth")
    other = torch.optim.Adam(small().parameters(), 1.0)
    other.load_state_dict(loaded["optimiser"])
    assert other.param_groups[0]["lr"] == 2e-4
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    assert (loaded["epoch"], loaded["metric"], loaded["best"]) == (3, 1.5, None)
    assert torch.equal(loaded["random"], state["random"])
