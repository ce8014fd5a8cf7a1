"""Which patients validate, and which CT is the truth for an MR."""

import logging
from dataclasses import replace

import pytest

from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.unaligned_dataset import open_unaligned
from data.prepared.manifest import Manifest, read_manifest
from data.prepared.splits import validation_cases
from data.values.intensity import IntensityMap
from data.volumes.slice_frame import SliceFrame
from tests.test_datasets import dataroot, make_case  # noqa: F401

GRID = SliceFrame((8, 8, 5), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), 8, 1.0)


def case(name, domain, split="train", patient=None, frame=GRID, **changes):
    made = make_case(name, domain, split=split)
    return replace(made, patient=patient or name, frame=frame.to_dict(), **changes)


def manifest(*cases) -> Manifest:
    return Manifest(8, 1.0, None, cases, {})


def unpaired(count=5) -> list:
    return [case(f"{domain}{k}", domain) for domain in "AB" for k in range(count)]


def names(cases):
    return [c.name for c in cases]


@pytest.mark.parametrize("seed", range(5))
def test_without_a_test_split_a_share_of_the_training_patients_validates_and_does_not_train(seed):
    data = manifest(*unpaired())
    chosen = validation_cases(data, 0.4, seed)
    assert (len(chosen.mr), len(chosen.ct)) == (2, 2)
    assert chosen.left_out == {c.patient for c in (*chosen.mr, *chosen.ct)}
    rest = data.without(chosen.left_out)
    assert len(rest.cases) == 6
    assert not chosen.left_out & {c.patient for c in rest.cases}
    assert validation_cases(manifest(*reversed(unpaired())), 0.4, seed) == chosen
    assert len({validation_cases(data, 0.2, seed).left_out for seed in range(20)}) > 2


def test_the_test_split_validates_where_there_is_one_and_all_others_train():
    tested = [case("t0", "A", "test"), case("t1", "A", "test"), case("t0", "B", "test")]
    chosen = validation_cases(manifest(*unpaired(), *tested), None, 0)
    assert (names(chosen.mr), names(chosen.ct), chosen.left_out) == (["t0", "t1"], ["t0"], frozenset())
    with pytest.raises(InputError, match=r"--val_patients 0.4 does nothing: .* test patients \(t0, t1\), which"):
        validation_cases(manifest(*unpaired(), *tested), 0.4, 0)


def test_without_a_share_said_it_is_the_default():
    data = manifest(*unpaired(20))
    assert validation_cases(data, None, 0) == validation_cases(data, 0.15, 0)
    assert len(validation_cases(data, None, 0).mr) == 3


def test_a_domain_without_a_test_split_holds_training_patients_back():
    chosen = validation_cases(manifest(*unpaired(), case("t0", "A", "test")), 0.2, 0)
    assert names(chosen.mr) == ["t0"]
    assert len(chosen.ct) == 1 and chosen.left_out == {chosen.ct[0].patient}


def test_a_patient_held_back_is_so_in_both_domains():
    both = [case(f"p{k}", domain) for k in range(5) for domain in "AB"]
    for seed in range(5):
        chosen = validation_cases(manifest(*both), 0.4, seed)
        assert names(chosen.mr) == names(chosen.ct) == sorted(chosen.left_out)
        assert len(chosen.left_out) == 2


def test_volumes_without_a_body_do_not_validate():
    empty = case("t0", "A", "test", body_slices=(0, 0))
    assert names(validation_cases(manifest(*unpaired(), empty, case("t1", "A", "test")), 0.2, 0).mr) == ["t1"]
    assert names(validation_cases(manifest(*unpaired(), empty), 0.2, 0).mr)[0].startswith("A")


def test_too_few_patients_are_refused():
    with pytest.raises(InputError, match="1 MR patients to train on"):
        validation_cases(manifest(*unpaired(1)), 0.2, 0)
    crossed = manifest(*(case(p, d) for p, d in (("p0", "A"), ("p1", "A"), ("p1", "B"), ("p2", "B"))))
    refused = 0
    for seed in range(20):
        try:
            chosen = validation_cases(crossed, 0.2, seed)
            assert crossed.without(chosen.left_out).select("train", "A")
        except InputError as error:
            refused += "would hold back every patient with" in str(error)
    assert 0 < refused < 20


def test_a_true_ct_is_of_the_same_patient_on_the_same_grid(caplog):
    caplog.set_level(logging.INFO)
    shifted = replace(GRID, source_origin=(0.5, 0.0, 0.0))
    nearly = replace(GRID, source_origin=(1e-4, 0.0, 0.0))
    tested = [
        case("mr_a", "A", "test", "a"), case("mr_b", "A", "test", "b"), case("mr_c", "A", "test", "c"),
        case("ct_a2", "B", "test", "a"), case("ct_a1", "B", "test", "a", shifted), case("ct_a3", "B", "test", "a"),
        case("ct_b", "B", "test", "b", shifted), case("ct_d", "B", "test", "d"),
    ]  # fmt: skip
    chosen = validation_cases(manifest(*unpaired(), *tested), None, 0)
    truth = {mr.name: chosen.true_ct(mr) for mr in chosen.mr}
    assert {name: ct and ct.name for name, ct in truth.items()} == {"mr_a": "ct_a2", "mr_b": None, "mr_c": None}
    (message,) = caplog.messages
    assert message.startswith("mr_b: the patient's CT (ct_b) lies on another grid")
    moved = replace(chosen, ct=(case("ct_a", "B", "test", "a", nearly),))
    assert moved.true_ct(chosen.mr[0]).name == "ct_a"


def test_patients_left_out_do_not_train(dataroot):  # noqa: F811
    def origins(*left_out):
        dataset = open_unaligned(
            dataroot, "percentile", IntensityMap.window(-1000, 1400), Augmentation(), False, 0, leave_out=left_out
        )
        return [{source.read(k, False).origin[:2] for k in range(len(source))} for source in (dataset.a, dataset.b)]

    assert origins() == [{"m1", "m2"}, {"c0", "c1", "c2"}]
    assert origins("m2", "c0") == [{"m1"}, {"c1", "c2"}]
    with pytest.raises(InputError, match=r"domain A \(MR\) has no slice"):
        origins("m1", "m2")
    assert names(read_manifest(dataroot).without({"m2"}).select("train", "A")) == ["m1"]
