import bz2
import decimal
import hashlib
import json
import lzma
import math
import pickle
import random
import zlib

import pytest

SHA256 = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


@pytest.mark.parametrize("module", [zlib, bz2, lzma])
@pytest.mark.parametrize("size", [0, 1000, 300_000])
def test_data_is_the_same_after_compression(module, size):
    data = random.Random(size).randbytes(size // 2) * 2
    assert module.decompress(module.compress(data)) == data


@pytest.mark.parametrize("data, digest", SHA256.items())
def test_digest_is_that_of_the_standard(data, digest):
    assert hashlib.sha256(data).hexdigest() == digest


@pytest.mark.parametrize("form", [json, pickle])
@pytest.mark.parametrize("value", [0, -1.5, "ümläut", [1, [2]], {"a": {"b": None}}, 10**30])
def test_value_is_the_same_after_it_was_written_and_read(form, value):
    assert form.loads(form.dumps(value)) == value


def test_list_of_100000_numbers_is_sorted():
    numbers = random.Random(1).choices(range(1_000_000), k=100_000)
    ordered = sorted(numbers)
    assert all(a <= b for a, b in zip(ordered, ordered[1:]))
    assert sum(ordered) == sum(numbers)


def test_floating_point_is_exact_to_the_last_bit():
    assert math.fsum([0.1] * 10) == 1.0
    assert (0.1 + 0.2).hex() == "0x1.3333333333334p-2"
    assert math.sqrt(2).hex() == "0x1.6a09e667f3bcdp+0"


def test_factorial_of_1000_has_2568_digits():
    with decimal.localcontext() as context:
        context.prec = 3000
        assert len(str(decimal.Decimal(math.factorial(1000)))) == 2568
