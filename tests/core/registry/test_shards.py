from __future__ import annotations

import json

import pytest

from perdure.errors import StaleShard, StoreCorrupt
from perdure.registry import Shards
from perdure.registry import shards as shards_module


@pytest.fixture
def shards(tmp_path):
    return Shards(str(tmp_path / "registry"), "events")


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


def test_old_snapshots_go(shards, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "GRACE_SECONDS", -1.0)
    mine = shards.claim(0, "one")
    for number in range(12):
        (folder / "memory.db").write_bytes(b"%d" % number)
        mine = shards.publish(mine, files(folder), {"0": number})
    kept = list((tmp_path / "registry" / "shards" / "events" / "0" / "log").iterdir())
    assert len(kept) == shards_module.KEPT
    # One head that never changed, and a database for each.
    stored = list((tmp_path / "registry" / "shards" / "events" / "0" / "files").iterdir())
    assert len(stored) == shards_module.KEPT + 1
    assert (shards.fetch(mine, tmp_path / "fetched") / "memory.db").read_bytes() == b"11"


def test_a_young_file_that_no_entry_names_stays(shards, folder, tmp_path):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    stored = tmp_path / "registry" / "shards" / "events" / "0" / "files"
    (stored / ("a" * 64)).write_bytes(b"about to be named")
    shards.publish(mine, files(folder), {"0": 2})
    assert (stored / ("a" * 64)).exists()


def test_what_lay_in_the_folder_goes(shards, folder, tmp_path):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    old = tmp_path / "fetched" / "heads"
    old.mkdir(parents=True)
    (old / "head-0.safetensors").write_bytes(b"old")
    (tmp_path / "fetched" / "memory.db-wal").write_bytes(b"old")
    assert set(files(shards.fetch(mine, tmp_path / "fetched"))) == {"memory.db", "heads/head-1.safetensors"}


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_file_is_told(shards, folder, tmp_path, damage):
    mine = shards.publish(shards.claim(0, "one"), files(folder), {"0": 1})
    file = tmp_path / "registry" / "shards" / "events" / "0" / "files" / mine.files["memory.db"]
    file.unlink() if damage == "missing" else file.write_bytes(b"other")
    with pytest.raises(StoreCorrupt, match=r"memory\.db of partition 0's snapshot 2"):
        shards.fetch(mine, tmp_path / "fetched")


def test_a_damaged_entry_is_told(shards, tmp_path):
    shards.claim(0, "one")
    entry = tmp_path / "registry" / "shards" / "events" / "0" / "log" / "00000001.json"
    entry.write_text(json.dumps({"partition": "x"}))
    with pytest.raises(StoreCorrupt, match=r"00000001\.json.*cannot be read"):
        shards.newest(0)


def test_topics_do_not_meet(tmp_path):
    Shards(str(tmp_path), "events").claim(0, "one")
    assert Shards(str(tmp_path), "events.other").partitions() == ()
