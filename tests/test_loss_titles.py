"""Titles of curves in words: every loss that a method records has one."""

import ast

import pytest

from tests.documented import ROOT
from visualization.loss_titles import explain_losses, loss_titles


def recorded_losses() -> set[str]:
    """Return the names of losses in the methods' sources: keys of `losses` and of what is called like it."""
    found = set()
    for file in ("models/cycle_gan_model.py", "models/slab_model.py", "models/refined_pairs_model.py",
                 "ct_segmentation/method.py"):  # fmt: skip
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.AnnAssign) and node.value:
                targets, value = [node.target], node.value
            elif isinstance(node, ast.Assign):
                targets, value = node.targets, node.value
            else:
                continue
            for target in targets:
                name = target.value if isinstance(target, ast.Subscript) else target
                if not (isinstance(name, ast.Name) and name.id.startswith("loss")):
                    continue
                keys = [target.slice] if isinstance(target, ast.Subscript) else getattr(value, "keys", [])
                found |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return found


def test_every_loss_of_every_method_has_a_title():
    names = sorted(recorded_losses() | {"G"})
    assert {"gan_A", "cycle_B", "mi_A", "shape", "D_S", "pairs", "hu", "reverse", "keep_R", "segmentation"} <= set(
        names
    )
    for name, title in zip(names, loss_titles(names, "AtoB"), strict=True):
        assert name not in title, f"{name} has no title"
    titles = loss_titles(names, "AtoB")
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("direction", "a", "b"), [("AtoB", "MR", "CT"), ("BtoA", "CT", "MR")])
def test_curves_are_called_by_what_the_domains_hold(direction, a, b):
    assert loss_titles(["G", "gan_A", "cycle_B", "idt_A", "D_A", "correlation_B"], direction) == [
        ("Total", ""),
        ("Adversarial loss of the generators", f"{a} to {b}"),
        ("Cycle consistency", f"{b} to {a} and back"),
        ("Identity", f"{b} stays {b}"),  # G_A, which makes B, is given a B
        ("Discriminators", f"real or synthetic {b}"),
        ("Correlation coefficient", f"synthetic {a} with its {b}"),
    ]


def test_a_loss_of_a_method_of_one_s_own_keeps_its_name():
    assert loss_titles(["edges_A", "edges_B", "total_variation"], "AtoB") == [
        ("edges", "edges_A"), ("edges", "edges_B"), ("total_variation", "total_variation"),
    ]  # fmt: skip


def test_losses_are_explained_in_one_line_by_their_titles():
    assert explain_losses(["G", "gan_A", "D_A", "edges_A"], "BtoA") == (
        "G = Total; gan_A = Adversarial loss of the generators: CT to MR; D_A = Discriminators: real or synthetic MR"
    )
    assert explain_losses(["edges_A"], "AtoB") == ""
