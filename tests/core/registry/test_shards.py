from __future__ import annotations

import json

import pytest

from perdure.errors import StaleShard, StoreCorrupt
from perdure.registry import Shards
from perdure.registry import shards as shards_module


@pytest.fixture
def shards(place):
    return Shards(place.url, "events")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "shard"
    (made / "heads").mkdir(parents=True)
    (made / "memory.db").write_bytes(b"first")
    (made / "heads" / "head-1.safetensors").write_bytes(b"sums")
    return made


def files(folder):
    return {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}


def test_nobody_owns_anything_at_first(shards):
    assert shards.partitions() == ()
    assert shards.newest(0) is None


def test_an_owner_hands_its_shard_to_the_next(shards, folder, tmp_path):
    mine = shards.claim(3, "one")
    assert (mine.number, mine.files, mine.offset) == (1, {}, {})
    shards.publish(mine, files(folder), {"3": 17})
    theirs = shards.claim(3, "two")
    assert (theirs.number, theirs.owner, theirs.offset) == (3, "two", {"3": 17})
    fetched = shards.fetch(theirs, tmp_path / "fetched")
    assert {name: file.read_bytes() for name, file in files(fetched).items()} == {
        "memory.db": b"first",
        "heads/head-1.safetensors": b"sums",
    }
    assert shards.partitions() == (3,)


def test_a_former_owner_is_fenced(shards, folder):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 5})
    shards.claim(0, "two")
    (folder / "memory.db").write_bytes(b"second")
    with pytest.raises(StaleShard, match="partition 0 was taken over from one"):
        shards.publish(mine, files(folder), {"0": 9})
    assert shards.newest(0).owner == "two"
    assert shards.newest(0).offset == {"0": 5}


def test_a_former_owner_is_fenced_even_when_its_number_is_free_again(shards, folder, monkeypatch):
    asleep = shards.claim(0, "one")
    awake = shards.claim(0, "two")
    for position in range(shards_module.KEPT + 3):
        awake = shards.publish(awake, files(folder), {"0": position})
    with pytest.raises(StaleShard):
        shards.publish(asleep, files(folder), {"0": 99})
    assert shards.newest(0) == awake
    assert shards.claim(0, "three").number == awake.number + 1


def test_two_claims_at_once_have_one_winner(shards, monkeypatch):
    """The second reads the log before the first has written."""
    real = shards.newest
    once = []

    def late(partition):
        found = real(partition)
        if not once:
            once.append(1)
            shards.claim(partition, "first")
        return found

    monkeypatch.setattr(shards, "newest", late)
    assert shards.claim(0, "second").number == 2


def test_old_snapshots_go(shards, folder, place, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "GRACE_SECONDS", -1.0)
    mine = shards.claim(0, "one")
    for number in range(12):
        (folder / "memory.db").write_bytes(b"%d" % number)
        mine = shards.publish(mine, files(folder), {"0": number})
    assert len(place.names("shards/events/0/log")) == shards_module.KEPT
    # One head that never changed, and a database for each.
    assert len(place.names("shards/events/0/files")) == shards_module.KEPT + 1
    assert (shards.fetch(mine, tmp_path / "fetched") / "memory.db").read_bytes() == b"11"


def test_a_young_file_that_no_entry_names_stays_until_it_is_old(shards, folder, place):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    place.backend.put(f"shards/events/0/files/{'a' * 64}", b"about to be named")
    mine = shards.publish(mine, files(folder), {"0": 2})
    assert "a" * 64 in place.names("shards/events/0/files")
    place.age("shards/events/0/files", shards_module.GRACE_SECONDS + 60)
    shards.publish(mine, files(folder), {"0": 3})
    assert place.names("shards/events/0/files") == sorted(mine.files.values())


def test_what_lay_in_the_folder_goes(shards, folder, tmp_path):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    old = tmp_path / "fetched" / "heads"
    old.mkdir(parents=True)
    (old / "head-0.safetensors").write_bytes(b"old")
    (tmp_path / "fetched" / "memory.db-wal").write_bytes(b"old")
    assert set(files(shards.fetch(mine, tmp_path / "fetched"))) == {"memory.db", "heads/head-1.safetensors"}


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_file_is_told(shards, folder, place, tmp_path, damage):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    file = f"shards/events/0/files/{mine.files['memory.db']}"
    place.backend.delete(file) if damage == "missing" else place.backend.put(file, b"other")
    with pytest.raises(StoreCorrupt, match=r"memory\.db of partition 0's snapshot 2"):
        shards.fetch(mine, tmp_path / "fetched")


def test_a_damaged_entry_is_told(shards, place):
    shards.claim(0, "one")
    place.backend.put("shards/events/0/log/00000001.json", json.dumps({"partition": "x"}).encode())
    with pytest.raises(StoreCorrupt, match=r"00000001\.json.*cannot be read"):
        shards.newest(0)


def test_topics_do_not_meet(place):
    Shards(place.url, "events").claim(0, "one")
    assert Shards(place.url, "events.other").partitions() == ()
