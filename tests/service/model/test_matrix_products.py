"""Products in fp8: what is rounded, what is refused, and that a real one and the simulated one are the same."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jrm_service.errors import CheckpointError
from jrm_service.model import matrix_products
from jrm_service.model.matrix_products import FP8, Merged, ScaledFP8, SimulatedFP8, dequantize, quantize, require_fp8
from support.cases import each


def layers(*outputs: int, inputs: int = 48, bias: bool = True, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(len(outputs))
    return [nn.Linear(inputs, width, bias=bias).to(dtype).requires_grad_(False) for width in outputs]


@each("bias", [True, False])
def test_layers_of_one_input_are_one_product(bias):
    separate = layers(32, 16, 16, bias=bias)
    tokens = torch.randn(1, 7, 48)
    expected = torch.cat([layer(tokens) for layer in separate], dim=-1)
    torch.testing.assert_close(Merged(separate)(tokens), expected, atol=1e-6, rtol=0)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40))
def test_a_number_is_off_by_a_sixteenth_or_by_a_step_of_the_smallest(numbers):
    tokens = torch.tensor([numbers])
    eight_bits, scale = quantize(tokens)
    assert eight_bits.dtype is FP8
    back = dequantize(eight_bits, scale)
    off = (back - tokens).abs()
    assert bool((off <= torch.maximum(tokens.abs() / 16, scale * 2**-9) * 1.0001).all())
    assert bool(((back == 0) | (back.sign() == tokens.sign())).all())


def test_the_largest_of_a_token_stays_what_it_is_and_zeros_stay_zeros():
    tokens = torch.tensor([[1e-6, -3.5e-4], [7.0, -1e4], [0.0, 0.0]])
    back = dequantize(*quantize(tokens))
    torch.testing.assert_close(back.abs().amax(-1), tokens.abs().amax(-1))
    assert back[2].tolist() == [0.0, 0.0]


@each("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_token(broken):
    tokens = torch.randn(3, 48)
    tokens[1, 5] = broken
    given_out = SimulatedFP8(layers(16))(quantize(tokens))
    assert given_out.isfinite().all(-1).tolist() == [True, False, True]


def test_the_simulation_multiplies_what_was_rounded_row_by_row():
    (layer,) = layers(16)
    tokens = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None]
    expected = torch.stack([dequantize(*quantize(token)) for token in tokens]) @ dequantize(*quantize(layer.weight)).T
    torch.testing.assert_close(SimulatedFP8([layer])(quantize(tokens)), expected + layer.bias)


@each("bias", [True, False])
def test_torchs_product_in_fp8_is_the_simulated_one(bias):
    """torch has it on a CPU too: the very lines that a GPU runs."""
    separate = layers(32, 16, bias=bias, dtype=torch.bfloat16)
    tokens = quantize(torch.randn(1, 9, 48, dtype=torch.bfloat16))
    got, expected = ScaledFP8(separate)(tokens), SimulatedFP8(separate)(tokens)
    assert got.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)
    matrix_products.require_right_product(separate[0], "cpu")


class OtherScales(ScaledFP8):
    """Takes every token's scale for that of its neighbour."""

    def forward(self, operand):
        tokens, scales = operand
        return super().forward((tokens, scales.roll(1, 0)))


def test_a_product_that_gives_something_else_is_refused():
    (layer,) = layers(16, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"the fp8 product of cpu is off by"):
        matrix_products.require_right_product(layer, "cpu", OtherScales)


def test_sides_that_no_product_takes_are_refused():
    with pytest.raises(CheckpointError, match=r"multiples of 16, not \[24, 48\]"):
        ScaledFP8(layers(24))


REFUSED = {
    "no GPU": (("cpu", "bfloat16", "trie"), "fp8 needs a GPU, the device is cpu; use --quantize none"),
    "an older GPU": (("cuda:0", "bfloat16", "trie"), "compute capability 8.0, fp8 needs 8.9"),
    "another dtype": (("cuda:1", "float16", "trie"), "--dtype is float16; use auto or bfloat16"),
    "the reference": (("cuda:1", "bfloat16", "plain"), "fp8 needs --engine trie"),
}


def capability(device: str) -> tuple[int, int]:
    """An A100 and an H100."""
    return {"cuda:0": (8, 0), "cuda:1": (9, 0)}[device]


@each("where, told", REFUSED.values())
def test_where_fp8_cannot_be_had_it_is_refused(where, told):
    with pytest.raises(CheckpointError, match=told):
        require_fp8(*where, capability)


def test_where_it_can_be_had_nothing_is_said():
    require_fp8("cuda:1", "bfloat16", "trie", capability)
