"""Turns when something is wrong: what is told, what stays, and that the next turn goes on."""

from __future__ import annotations

import logging
import sqlite3

import numpy as np
import pytest
from obstore.store import LocalStore

from perdure.errors import ModelNotFound, RegistryError, StoreBusy, StreamError, VersionDamaged
from perdure.registry import Registry


class Stopped(Exception):
    """Ends a turn at a stage, as a crash would."""


def stop_at(name: str):
    def stage(reached: str) -> None:
        if reached == name:
            raise Stopped(name)

    return stage


def log_of(desk) -> list[str]:
    return [entry.version for entry in desk.registry().promotions()]


@pytest.fixture
def taught(desk):
    """A desk with a first version, and rows for a second turn."""
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    desk.teach("login", "refund", name="more", at=100.0, seed=1)
    return desk


def test_somebody_who_promotes_meanwhile_makes_the_turn_stale(taught):
    def meddle(stage: str) -> None:
        if stage == "judge head":
            taught.registry().promote("v000001-head", reason="I know better", by="ann")

    result = taught.turn(stage=meddle)
    assert [(one.kind, one.outcome) for one in result.candidates] == [("head", "stale")], "LoRA could not be promoted"
    assert "ann has meanwhile promoted v000001-head (I know better)" in result.candidates[0].sentence
    assert result.champion == "v000001-head"
    assert not result.promoted
    assert log_of(taught) == ["v000001-head", "v000001-head"]
    # What the stale candidate had learned is in the next one.
    taught.teach("parcel", name="next", at=300.0, seed=2)
    result = taught.turn(lora__enabled=False)
    assert [(one.version, one.outcome) for one in result.candidates] == [("v000003-head", "promote")]
    assert taught.registry().card("v000003-head").labels == ("login", "parcel", "refund")
    assert taught.statistics().counts == {"login": 20, "refund": 40, "parcel": 40}


def test_a_rollback_during_a_turn_that_was_killed_is_not_undone(taught):
    with pytest.raises(Stopped):
        taught.turn(stage=stop_at("finish"), lora__enabled=False)
    assert log_of(taught)[-1] == "v000002-head"
    taught.registry().rollback(by="ann", reason="too eager")
    result = taught.turn(lora__enabled=False)
    assert log_of(taught) == ["v000001-head", "v000002-head", "v000001-head"]
    assert result.champion == "v000001-head"


def test_after_a_rollback_the_next_turn_goes_on_from_what_is_served(taught):
    taught.turn(lora__enabled=False)
    taught.registry().rollback(by="ann", reason="too eager")
    taught.teach("parcel", name="next", at=300.0, seed=2)
    result = taught.turn(lora__enabled=False)
    assert result.champion_before == "v000001-head"
    assert taught.registry().card("v000003-head").parent == "v000001-head"
    assert [(one.version, one.outcome) for one in result.candidates] == [("v000003-head", "promote")]
    assert taught.statistics().counts == {"login": 20, "refund": 40, "parcel": 40}


def test_neighbours_are_asked_in_the_space_of_the_champion(taught, sentences):
    """After a rollback from an adapted version memory is embedded anew, without the rows of this very turn."""
    taught.turn(lora__enabled=False)
    with taught.memory(read_only=False) as memory:
        keys = [sample.key for sample in memory.samples()]
        vectors = np.random.default_rng(0).normal(size=(len(keys), 32)).astype(np.float32)
        memory.embed("another-space", keys, vectors)
    wrong = taught.send([(text, "parcel") for text in sentences("refund", 4, seed=4)], name="wrong", at=900.0)
    embedded: list[int] = []

    def look(stage: str) -> None:
        if stage == "learn head":
            with taught.memory() as memory:
                embedded.append(sum(bool(memory.embedded(s)) for s in ("another-space",)))

    result = taught.turn(stage=look, lora__enabled=False, gate__confident=0.5, gate__neighbours=3)
    assert embedded == [0]
    assert result.gate["quarantine"] == len(wrong)


def test_embeddings_of_another_space_go_even_when_there_is_nothing_to_embed(desk):
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    with desk.memory(read_only=False) as memory:
        keys = [sample.key for sample in memory.samples()]
        memory.embed("another-space", keys, np.ones((len(keys), 32), dtype=np.float32))
    # Every sample is said again: none of them may vouch for a row of this turn.
    desk.teach("refund", "parcel", name="again", at=100.0)
    desk.turn(lora__enabled=False)
    with desk.memory() as memory:
        assert not memory.embedded("another-space")


def test_a_damaged_champion_is_told_and_nothing_is_promoted(taught):
    file = taught.folder / "registry" / "versions" / "v000001-head" / "head.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (taught.folder / "cache").rename(taught.folder / "old-cache")
    with pytest.raises(VersionDamaged, match=r"head\.safetensors of version v000001-head"):
        taught.turn()
    assert log_of(taught) == ["v000001-head"]
    with taught.memory() as memory:
        # The turn has not begun: it would go on with this champion for ever.
        assert memory.turn().stage == "open"
    file.write_bytes(good)
    assert taught.turn(lora__enabled=False).champion == "v000002-head"


def test_a_champion_damaged_in_the_middle_of_a_turn_can_be_replaced(taught, caplog):
    with pytest.raises(Stopped):
        taught.turn(stage=stop_at("gate"))
    registry = taught.registry()
    card = registry.card("v000001-head")
    registry.write(
        card.model_copy(update={"name": "by-hand"}), {name: registry.read("v000001-head", name) for name in card.files}
    )
    file = taught.folder / "registry" / "versions" / "v000001-head" / "model.json"
    file.unlink()
    (taught.folder / "cache").rename(taught.folder / "old-cache")
    with pytest.raises(VersionDamaged):
        taught.turn()
    registry.promote("by-hand", reason="the other one is damaged", by="ann")
    with caplog.at_level(logging.WARNING, logger="perdure.loop"):
        result = taught.turn(lora__enabled=False)
    assert "goes on from by-hand" in caplog.text
    assert [(one.version, one.outcome) for one in result.candidates] == [("v000002-head", "promote")]
    assert log_of(taught) == ["v000001-head", "by-hand", "v000002-head"]
    assert taught.statistics().counts == {"login": 20, "refund": 40, "parcel": 20}


def test_a_head_without_its_statistics_file_is_rebuilt_from_memory(taught, caplog):
    with taught.memory() as memory:
        taught.statistics_file(memory).unlink()
    with caplog.at_level(logging.WARNING, logger="perdure.loop"):
        result = taught.turn(lora__enabled=False)
    assert "rebuilt from memory" in caplog.text
    assert result.champion == "v000002-head"
    assert taught.statistics().counts == {"login": 20, "refund": 40, "parcel": 20}


@pytest.mark.parametrize("setting", [{"model__features": 128}, {"seed": 11}, {"model__bandwidth": 2.0}])
def test_other_features_never_mix_with_the_old_ones(desk_at, tmp_path, setting, caplog):
    changed = desk_at(tmp_path / "changed")
    changed.teach("refund", "parcel")
    changed.turn(lora__enabled=False)
    fresh = desk_at(tmp_path / "fresh")
    fresh.teach("refund", "parcel")
    for one in (changed, fresh):
        one.teach("login", name="more", at=100.0, seed=1)
        with caplog.at_level(logging.WARNING, logger="perdure.loop"):
            one.turn(lora__enabled=False, **setting)
    assert "rebuilt from memory" in caplog.text
    assert changed.statistics().counts == fresh.statistics().counts
    assert (changed.statistics().gram == fresh.statistics().gram).all()


class Full:
    """A store that cannot be written any more from some file on."""

    def __init__(self, folder, part: str) -> None:
        self._inner = LocalStore(folder)
        self._part = part

    def put(self, path, *args, **kwargs):
        if self._part in path:
            raise OSError(28, "No space left on device")
        return self._inner.put(path, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("part", ["versions/v000002-head", "v000002-head/card.json", "promotions/00000002"])
def test_a_full_registry_stops_the_turn_and_a_later_one_ends_it(taught, part):
    full = Registry.over(Full(taught.folder / "registry", part), "the full store")
    with pytest.raises(RegistryError, match="the full store"):
        taught.turn(registry=full, lora__enabled=False)
    assert log_of(taught) == ["v000001-head"]
    with taught.memory() as memory:
        assert memory.turn().stage == "frozen"
    result = taught.turn(lora__enabled=False)
    assert (result.number, result.champion) == (2, "v000002-head")
    assert log_of(taught) == ["v000001-head", "v000002-head"]
    assert taught.statistics().counts == {"login": 20, "refund": 40, "parcel": 20}


def test_a_version_of_another_memory_keeps_its_name(taught):
    """A memory that was deleted begins with turn 1 again; what it makes must not pass for what lies there."""
    (taught.folder / "memory").rename(taught.folder / "lost-memory")
    result = taught.turn(lora__enabled=False)
    assert result.number == 1
    assert [one.version for one in result.candidates] == ["v000001-head.2"]
    assert taught.registry().card("v000001-head").labels == ("parcel", "refund")
    assert taught.registry().card("v000001-head.2").labels == ("login", "parcel", "refund")


def test_a_locked_stream_is_told_and_loses_nothing(taught, monkeypatch):
    locked = taught.settings.with_values({"stream.busy_timeout": 0.05})
    holder = sqlite3.connect(taught.folder / "stream.db", isolation_level=None)
    try:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("CREATE TABLE hold (x)")
        with pytest.raises(StreamError, match="locked"):
            type(taught)(locked, taught.folder).turn()
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert taught.turn(lora__enabled=False).champion == "v000002-head"


def test_only_one_turn_runs_at_a_time(taught):
    with taught.memory(read_only=False), pytest.raises(StoreBusy, match="being written by process"):
        taught.turn()


def test_a_model_that_is_not_there_changes_nothing(taught, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="no-such-encoder"):
        taught.turn(model__name="no-such-encoder")
    with taught.memory() as memory:
        assert memory.turn().stage == "open"
    assert taught.turn(lora__enabled=False).champion == "v000002-head"


def test_another_encoder_does_not_touch_what_the_champion_was_made_with(taught, tiny_encoder, tmp_path):
    import torch
    from transformers import BertModel, BertTokenizerFast

    other = tmp_path / "other-encoder"
    model = BertModel.from_pretrained(tiny_encoder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(1.5)
    model.save_pretrained(other)
    BertTokenizerFast.from_pretrained(tiny_encoder).save_pretrained(other)
    before = taught.statistics()
    with pytest.raises(VersionDamaged, match="made with encoder"):
        taught.turn(model__name=str(other))
    with taught.memory() as memory:
        assert memory.turn().stage == "open"
    assert (taught.statistics().gram == before.gram).all()
    assert taught.turn(lora__enabled=False).champion == "v000002-head"
