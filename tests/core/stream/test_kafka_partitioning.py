from __future__ import annotations

import random

import pytest
from kafka.partitioner.default import murmur2 as reference

from perdure.stream.kafka.partitioning import murmur2, partitions_of


@pytest.mark.parametrize("length", [*range(1, 14), 36, 100, 400])
def test_hashes_are_those_of_kafkas_own_clients(length):
    rng = random.Random(length)
    keys = [rng.randbytes(length) for _ in range(50)]
    assert murmur2(keys).tolist() == [reference(key) for key in keys]


def test_keys_of_many_lengths_keep_their_order():
    rng = random.Random(0)
    keys = [rng.randbytes(rng.randint(1, 60)) for _ in range(300)]
    assert partitions_of(keys, 7) == [(reference(key) & 0x7FFFFFFF) % 7 for key in keys]


def test_known_values_of_the_java_client():
    """From org.apache.kafka.common.utils.UtilsTest."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert [int(value) - (2**32 if value >= 2**31 else 0) for value in murmur2(list(known))] == list(known.values())


def test_no_keys_are_no_partitions():
    assert partitions_of([], 3) == []
