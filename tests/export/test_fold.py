"""Folding a BatchNorm changes nothing, to the accuracy of float64 and up to the border; what cannot be folded exactly stays."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, draw, norm, operators, run
from onnx import helper

from cmunext.export.fold import fold


def assert_folded(model: ir.Model, shape: tuple[int, ...], expected: tuple[int, int], left: list[str]) -> None:
    x = draw(*shape)
    before = run(model, x)
    assert fold(model) == expected
    assert operators(model) == left
    for old, new in zip(before, run(model, x), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-12 * max(1, np.abs(old).max()))
    assert np.std(before[0]) > 0.1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("groups", "kernel", "pads"), [(1, 3, [1, 1, 1, 1]), (2, 3, [1, 0, 2, 1]), (4, 5, [2, 2, 2, 2]), (1, 1, [0] * 4)]
)
def test_into_the_convolution_before_whatever_its_padding(groups: int, kernel: int, pads: list[int], bias: bool) -> None:
    constants = {"w": draw(8, 4 // groups, kernel, kernel), **({"b": draw(8)} if bias else {})}
    convolution = helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], pads=pads, group=groups)
    model = build(
        [convolution, norm("n", "c", "z", 8, constants), helper.make_node("Relu", ["z"], ["y"])], constants, (2, 4, 7, 6)
    )
    assert_folded(model, (2, 4, 7, 6), (1, 0), ["Conv", "Relu"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("groups", "kernel", "strides"), [(1, 1, [1, 1]), (2, 1, [1, 1]), (4, 1, [2, 2]), (1, 2, [2, 2]), (2, 3, [1, 1])]
)
def test_into_an_unpadded_convolution_behind(groups: int, kernel: int, strides: list[int], bias: bool) -> None:
    constants = {"w": draw(8, 4 // groups, kernel, kernel), **({"b": draw(8)} if bias else {})}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Conv", ["z", "w", *(["b"] if bias else [])], ["y"], group=groups, strides=strides),
    ]
    assert_folded(build(nodes, constants, (2, 4, 6, 6)), (2, 4, 6, 6), (1, 0), ["Gelu", "Conv"])


@pytest.mark.parametrize("attribute", [{"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_a_padded_convolution_behind_keeps_the_norm(attribute: dict) -> None:
    constants = {"w": draw(8, 4, 3, 3), "b": draw(8)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Conv", ["z", "w", "b"], ["y"], **attribute),
    ]
    assert_folded(build(nodes, constants, (1, 4, 6, 6)), (1, 4, 6, 6), (0, 1), ["Gelu", "BatchNormalization", "Conv"])


def test_a_residual_sum_behind_keeps_the_norm() -> None:
    constants = {"w": draw(8, 4, 1, 1)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Add", ["x", "z"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"]),
    ]
    assert_folded(build(nodes, constants, (1, 4, 5, 5)), (1, 4, 5, 5), (0, 1), ["Gelu", "BatchNormalization", "Add", "Conv"])


def test_what_a_second_reader_or_the_output_sees_is_kept() -> None:
    constants = {"w": draw(8, 4, 1, 1), "v": draw(4, 4, 1, 1)}
    first = helper.make_node("Conv", ["x", "v"], ["c"])
    nodes = [first, norm("n", "c", "y", 4, constants), helper.make_node("Relu", ["c"], ["r"])]
    assert_folded(build(nodes, constants, (1, 4, 5, 5), ("y", "r")), (1, 4, 5, 5), (0, 1), ["Conv", "BatchNormalization", "Relu"])
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Conv", ["z", "w"], ["y"]),
    ]
    both = build(nodes, constants, (1, 4, 5, 5), ("y", "z"))
    assert_folded(both, (1, 4, 5, 5), (0, 1), ["Gelu", "BatchNormalization", "Conv"])


def test_all_readers_take_it_or_none() -> None:
    constants = {"w": draw(8, 4, 1, 1), "v": draw(6, 4, 1, 1)}
    start = [helper.make_node("Gelu", ["x"], ["g"]), norm("n", "g", "z", 4, constants)]
    convolutions = [helper.make_node("Conv", ["z", "w"], ["y"]), helper.make_node("Conv", ["z", "v"], ["u"])]
    assert_folded(
        build([*start, *convolutions], constants, (1, 4, 5, 5), ("y", "u")), (1, 4, 5, 5), (1, 0), ["Gelu", "Conv", "Conv"]
    )
    one_padded = [convolutions[0], helper.make_node("Conv", ["z", "v"], ["u"], pads=[0, 0, 1, 1])]
    model = build([*start, *one_padded], constants, (1, 4, 5, 5), ("y", "u"))
    assert_folded(model, (1, 4, 5, 5), (0, 1), ["Gelu", "BatchNormalization", "Conv", "Conv"])


def test_weights_shared_by_two_convolutions_are_changed_for_one() -> None:
    constants = {"w": draw(4, 4, 1, 1), "b": draw(4)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Gelu", ["c"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Conv", ["z", "w", "b"], ["y"]),
    ]
    assert_folded(build(nodes, constants, (1, 4, 5, 5)), (1, 4, 5, 5), (1, 0), ["Conv", "Gelu", "Conv"])


def test_a_convolution_between_two_norms_takes_both() -> None:
    constants = {"w": draw(8, 4, 1, 1)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Conv", ["z", "w"], ["c"]),
        norm("m", "c", "d", 8, constants),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    assert_folded(build(nodes, constants, (1, 4, 5, 5)), (1, 4, 5, 5), (2, 0), ["Gelu", "Conv", "Relu"])


def test_through_resizing_and_concatenation() -> None:
    constants = {"w": draw(8, 7, 1, 1), "b": draw(8), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Resize", ["z", "", "scales"], ["up"], mode="linear", coordinate_transformation_mode="align_corners"),
        helper.make_node("Conv", ["up", "v"], ["side"]),
        helper.make_node("Concat", ["side", "up"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w", "b"], ["y"]),
    ]
    model = build(nodes, {**constants, "v": draw(3, 4, 1, 1)}, (1, 4, 5, 5))
    assert_folded(model, (1, 4, 5, 5), (1, 0), ["Gelu", "Resize", "Conv", "Concat", "Conv"])


def test_into_linear_layers_on_either_side() -> None:
    """Channels last, as ConvUNeXt and its kin compute their pointwise layers."""
    constants = {"w": draw(4, 8), "b": draw(8), "v": draw(8, 4), "c": draw(4)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        norm("n", "g", "z", 4, constants),
        helper.make_node("Transpose", ["z"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["hidden"]),
        helper.make_node("Gelu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "v"], ["p"]),
        helper.make_node("Add", ["p", "c"], ["projected"]),
        helper.make_node("Transpose", ["projected"], ["back"], perm=[0, 3, 1, 2]),
        norm("m", "back", "q", 4, constants),
        helper.make_node("Relu", ["q"], ["y"]),
    ]
    left = ["Gelu", "Transpose", "MatMul", "Add", "Gelu", "MatMul", "Add", "Transpose", "Relu"]
    assert_folded(build(nodes, constants, (2, 4, 3, 5)), (2, 4, 3, 5), (2, 0), left)


def test_statistics_that_are_computed_keep_the_norm() -> None:
    constants = {"w": draw(4, 4, 1, 1)}
    node = norm("n", "c", "z", 4, constants)
    node.input[2] = "moved"
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["moved"], keepdims=0),
        node,
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    model = build(nodes, {**constants, "axes": np.array([0, 2, 3])}, (1, 4, 5, 5))
    assert_folded(model, (1, 4, 5, 5), (0, 1), ["Conv", "ReduceMean", "BatchNormalization", "Relu"])


def test_constants_that_nobody_reads_are_dropped() -> None:
    constants = {"w": draw(4, 4, 3, 3), "b": draw(4)}
    model = build([helper.make_node("Conv", ["x", "w", "b"], ["c"]), norm("n", "c", "y", 4, constants)], constants, (1, 4, 5, 5))
    assert fold(model) == (1, 0)
    assert sorted(value.const_value.shape.rank() for value in model.graph.initializers.values()) == [1, 4]
