"""Bits in and out: packing is lossless, and damaged files are refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qnas.deploy.pack import FORMAT, pack_codes, read_packed, unpack_codes
from qnas.errors import ExportError, StoreError


@st.composite
def codes_of_some_bits(draw):
    bits = draw(st.integers(2, 8))
    signed = draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return bits, signed, draw(st.lists(st.integers(low, high), max_size=70))


@settings(max_examples=150, deadline=None)
@given(codes_of_some_bits())
def test_unpacking_is_the_inverse_of_packing(case):
    bits, signed, values = case
    codes = torch.tensor(values, dtype=torch.int16)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.nbytes == -(-len(values) * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, len(values), signed), codes)


def test_codes_lie_in_twos_complement_lowest_bit_first():
    assert pack_codes(torch.tensor([1, -1, 2]), 3).tolist() == [0b10_111_001, 0b0]
    assert pack_codes(torch.tensor([-8, 7]), 4).tolist() == [0x78]


@pytest.mark.parametrize(("code", "bits"), [(8, 3), (-5, 3), (256, 8), (-129, 8), (0, 9)])
def test_a_code_that_does_not_fit_is_refused(code, bits):
    with pytest.raises(ExportError):
        pack_codes(torch.tensor([code]), bits)


def test_the_wrong_number_of_bytes_is_refused():
    with pytest.raises(StoreError, match="damaged"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, 8, signed=True)


def layer_tensors():
    return {
        "fc.codes": pack_codes(torch.tensor([1, -2, 0, 3, -4, 2]), 3),
        "fc.scales": torch.tensor([0.5, -0.25]),
        "fc.bias": torch.tensor([7, -9], dtype=torch.int32),
        "fc.grid_scale": torch.tensor(0.1),
        "fc.grid_zero_point": torch.tensor(4, dtype=torch.uint8),
    }


ENTRY = {"kind": "linear", "bits": 3, "shape": [2, 3, 1, 1], "stride": 1, "groups": 1, "grid": [0, 15], "bias_shift": 4}


def write(path: Path, tensors, entry=ENTRY, **metadata):
    save_file(tensors, path, {FORMAT: json.dumps({"layers": {"fc": entry}, **metadata})})
    return path


def test_a_sound_file_is_read(tmp_path):
    read = read_packed(write(tmp_path / "m.safetensors", layer_tensors(), note="x"))
    assert read["metadata"]["note"] == "x"
    assert read["layers"]["fc"]["codes"].flatten().tolist() == [1, -2, 0, 3, -4, 2]


def test_a_batch_normalisation_in_float_is_read_and_checked(tmp_path):
    entry = {"kind": "affine", "shape": [2]}
    tensors = {"fc.factor": torch.tensor([0.5, -2.0]), "fc.offset": torch.tensor([1.0, 0.0])}
    read = read_packed(write(tmp_path / "m.safetensors", tensors, entry))["layers"]["fc"]
    assert (read["factor"].tolist(), read["offset"].tolist()) == ([0.5, -2.0], [1.0, 0.0])
    for change in ({"fc.offset": torch.zeros(3)}, {"fc.factor": torch.zeros(2).int()}, {"fc.more": torch.zeros(2)}):
        with pytest.raises(StoreError, match="damaged"):
            read_packed(write(tmp_path / "m.safetensors", tensors | change, entry))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("fc.bias"),
        lambda t: t.update({"fc.more": torch.zeros(1)}),
        lambda t: t.update({"fc.codes": torch.zeros(2, dtype=torch.uint8)}),
        lambda t: t.update({"fc.scales": torch.zeros(3)}),
        lambda t: t.update({"fc.bias": torch.zeros(2)}),
        lambda t: t.update({"fc.grid_scale": torch.tensor(0.0)}),
        lambda t: t.update({"fc.grid_zero_point": torch.tensor(16, dtype=torch.uint8)}),
    ],
)
def test_tensors_that_do_not_fit_their_description_are_refused(tmp_path, change):
    tensors = layer_tensors()
    change(tensors)
    with pytest.raises(StoreError, match="damaged"):
        read_packed(write(tmp_path / "m.safetensors", tensors))


@pytest.mark.parametrize(
    "entry",
    [{}, [], {**ENTRY, "bits": 5}, {**ENTRY, "shape": [3, 2]}, {**ENTRY, "bits": "x"}, {**ENTRY, "bias_shift": 9}],
)
def test_impossible_descriptions_are_refused(tmp_path, entry):
    with pytest.raises(StoreError):
        read_packed(write(tmp_path / "m.safetensors", layer_tensors(), entry))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(StoreError, match="cannot be read"):
        read_packed(path)
    path.write_bytes(b"no model")
    with pytest.raises(StoreError, match="cannot be read"):
        read_packed(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(StoreError, match="no packed model"):
        read_packed(path)
