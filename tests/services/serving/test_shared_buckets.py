"""The rates of API keys where several processes answer."""

from __future__ import annotations

import fcntl
import threading

import pytest

from perdure_services.serving.shared_bucket import SharedBucket, SharedBuckets
from perdure_services.serving.token_bucket import TokenBucket


def test_a_shared_bucket_is_one_bucket_whoever_takes(tmp_path):
    one, other = SharedBuckets(tmp_path / "rates"), SharedBuckets(tmp_path / "rates")
    ours, theirs = (SharedBucket(buckets, b"0123456789ab", 2.0, 3.0) for buckets in (one, other))
    alone = TokenBucket(2.0, 3.0, 10.0)
    moments = [10.0, 10.0, 10.1, 10.2, 10.3, 10.9, 11.0, 30.0, 30.0, 30.0, 30.0]
    shared = [(ours, theirs)[turn % 2].take(now) for turn, now in enumerate(moments)]
    assert shared == pytest.approx([alone.take(now) for now in moments])
    assert shared.count(0.0) == 8
    for buckets in (one, other):
        buckets.close()


def test_each_key_has_its_own_whoever_asks_first(tmp_path):
    one, other = SharedBuckets(tmp_path / "rates"), SharedBuckets(tmp_path / "rates")
    keys = [f"{number:012x}".encode() for number in range(50)]
    # Both make entries by turns, neither knowing of the other's.
    for turn, key in enumerate(keys):
        assert (one, other)[turn % 2].take(key, rate=0.1, burst=2, now=1.0) == 0.0
    for key in keys:
        assert one.take(key, rate=0.1, burst=2, now=1.0) == 0.0
        assert other.take(key, rate=0.1, burst=2, now=1.0) == pytest.approx(10.0)
    assert (tmp_path / "rates").stat().st_mode & 0o077 == 0
    for buckets in (one, other):
        buckets.close()


def test_who_takes_waits_for_who_is_taking(tmp_path):
    buckets = SharedBuckets(tmp_path / "rates")
    done = threading.Event()

    def take():
        buckets.take(b"0123456789ab", rate=1, burst=1, now=1.0)
        done.set()

    with (tmp_path / "rates").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        taking = threading.Thread(target=take)
        taking.start()
        assert not done.wait(0.2)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert done.wait(5)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    taking.join(5)
    buckets.close()


def test_no_token_is_taken_twice(tmp_path):
    taken = []

    def take():
        buckets = SharedBuckets(tmp_path / "rates")
        for _ in range(200):
            taken.append(buckets.take(b"0123456789ab", rate=0.001, burst=300, now=1.0))
        buckets.close()

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(10)
    assert taken.count(0.0) == 300
