"""What a person asked to be forgotten is out of the head, to the last bit."""

from __future__ import annotations

import pytest

from perdure.errors import UsageError
from perdure.judge.verdict import Verdict


def teach_around(desk, *, ann: bool, sentences) -> None:
    rows = [(text, label) for label in ("refund", "parcel") for text in sentences(label, 20)]
    desk.send(rows, name="row")
    if ann:
        desk.send([(text, "refund") for text in sentences("login", 6)], name="ann", at=100.0, subject="ann")


@pytest.mark.parametrize("when", ["before the turn", "after the turn", "in the middle of the turn"])
def test_a_forgotten_subject_leaves_the_statistics_as_if_never_seen(desk_at, tmp_path, sentences, when):
    without, desk = desk_at(tmp_path / "without"), desk_at(tmp_path / "with")
    teach_around(without, ann=False, sentences=sentences)
    without.turn(lora__enabled=False)
    teach_around(desk, ann=True, sentences=sentences)
    if when == "before the turn":
        desk.forget("ann", 1000.0)
    if when == "in the middle of the turn":

        def stage(name: str) -> None:
            if name == "gate":
                raise InterruptedError

        with pytest.raises(InterruptedError):
            desk.turn(stage=stage, lora__enabled=False)
        assert desk.statistics().rows == 46
        with desk.memory(read_only=False) as memory:
            assert memory.forget("ann", 1000.0).deltas == 6
    result = desk.turn(lora__enabled=False)
    if when == "after the turn":
        assert desk.statistics().rows == 46
        desk.forget("ann", 1000.0)
        result = desk.turn(lora__enabled=False)
    assert [one.kind for one in result.candidates] in (["first"], ["head"])
    one, other = without.statistics(), desk.statistics()
    assert other.counts == one.counts == {"refund": 20, "parcel": 20}
    assert (other.gram == one.gram).all()
    assert all((other.sums[label] == one.sums[label]).all() for label in one.sums)
    with without.memory() as first, desk.memory() as second:
        files = without.statistics_file(first), desk.statistics_file(second)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert [sample.text for sample in first.samples()] == [sample.text for sample in second.samples()]


def test_what_is_only_in_sums_is_rebuilt_from_memory(desk_at, tmp_path, sentences):
    """Labels whose interaction has left the join state cannot be taken out one by one."""
    desk = desk_at(tmp_path / "desk", memory__join_rows=20)
    desk.send([(text, "login") for text in sentences("login", 8)], name="ann", subject="ann")
    desk.send([(text, label) for label in ("refund", "parcel") for text in sentences(label, 20)], name="row", at=100.0)
    desk.turn(lora__enabled=False)
    # More rows push Ann's out of the join state.
    desk.send([(text, "refund") for text in sentences("refund", 25, seed=1)], name="more", at=200.0)
    desk.turn(lora__enabled=False)
    assert desk.statistics().counts["login"] == 8
    desk.forget("ann", 1000.0)
    result = desk.turn(lora__enabled=False)
    with desk.memory() as memory:
        assert not memory.rebuild_due
        living = {sample.text for sample in memory.samples()}
    assert not living & set(sentences("login", 8))
    assert "login" not in desk.statistics().counts
    assert desk.statistics().counts == {"refund": 45, "parcel": 20}
    # Whether so few rows are evidence enough to serve it is another question.
    assert desk.registry().card(result.candidates[0].version).labels == ("parcel", "refund")


def test_a_rebuild_is_due_even_when_nothing_else_is_new(desk, sentences):
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    calls: list[str] = []
    with desk.memory(read_only=False) as memory:
        kind = type(memory)
        original = kind.rebuild_statistics
    patch = pytest.MonkeyPatch()
    patch.setattr(kind, "rebuild_due", property(lambda self: not calls))
    patch.setattr(kind, "rebuild_statistics", lambda self: (calls.append("rebuilt"), original(self))[1])
    try:
        assert not desk.turn(lora__enabled=False).empty
    finally:
        patch.undo()
    assert calls == ["rebuilt"]
    assert desk.statistics().counts == {"refund": 20, "parcel": 20}


def test_a_label_that_loses_its_last_example_keeps_the_champion(desk, sentences):
    desk.send([(text, "refund") for text in sentences("refund", 20)], name="row")
    desk.send([(text, "parcel") for text in sentences("parcel", 20)], name="ann", at=100.0, subject="ann")
    desk.turn(lora__enabled=False)
    desk.forget("ann", 1000.0)
    result = desk.turn(lora__enabled=False)
    assert result.candidates == ()
    assert result.note == "too little to learn from"
    assert result.champion == "v000001-head"
    # And it is not stuck.
    desk.teach("login", name="more", at=2000.0)
    assert desk.turn(lora__enabled=False).number == 3


def test_an_empty_first_turn_with_one_class_names_it(desk, sentences):
    desk.send([(text, "refund") for text in sentences("refund", 5)])
    with pytest.raises(UsageError, match="a first version needs at least two labels with 3 examples"):
        desk.turn()


def test_a_head_without_what_was_forgotten_is_served_though_it_be_no_better(desk, sentences):
    """Nothing else has come, and no margin of 2 points can be proved on so few rows."""
    desk.teach("refund", "parcel")
    desk.send([(text, "refund") for text in sentences("login", 6)], name="ann", at=100.0, subject="ann")
    desk.turn(lora__enabled=False)
    desk.forget("ann", 1000.0)
    result = desk.turn(lora__enabled=False, judge__min_rows=1000)
    assert result.champion == "v000002-head"
    assert "no longer knows what was asked to be forgotten" in result.candidates[0].sentence
    assert [desk.registry().card(name).unlearned for name in ("v000001-head", "v000002-head")] == [0, 6]
    # Once: the next head is held to what every head is.
    desk.teach("refund", count=4, name="more", at=2000.0, seed=5)
    assert desk.turn(lora__enabled=False, judge__min_rows=1000).champion == "v000002-head"


def test_an_adapter_on_the_old_head_still_owes_the_erasure(desk, sentences, monkeypatch):
    """It is the head that knows: an adapter beside the old one does not carry the erasure out."""
    desk.teach("refund", "parcel")
    desk.send([(text, "refund") for text in sentences("login", 6)], name="ann", at=100.0, subject="ann")
    desk.turn(lora__enabled=False)
    desk.forget("ann", 1000.0)
    desk.teach("refund", "parcel", name="more", at=2000.0, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr("perdure.judge.verdict._erasing", lambda *given: Verdict("keep", "Keep: it lost too much.", ()))
        result = desk.turn(judge__min_rows=1000)
    assert [(one.kind, one.outcome) for one in result.candidates] == [("head", "keep"), ("lora", "inconclusive")]
    owed = {one.kind: desk.registry().card(one.version).unlearned for one in result.candidates}
    assert owed == {"head": 6, "lora": 0}
    desk.registry().promote(result.candidates[1].version, reason="a person wants it", by="somebody")
    desk.teach("refund", count=2, name="last", at=3000.0, seed=9)
    assert desk.turn(lora__enabled=False, judge__min_rows=1000).champion == "v000003-head"
    assert desk.registry().card("v000003-head").unlearned == 6


def test_a_turn_that_came_too_late_leaves_no_erasure_behind(desk, sentences):
    """Somebody promotes while the turn with the erasure is under way: the next turn needs nothing new to go on."""
    teach_around(desk, ann=True, sentences=sentences)
    desk.turn(lora__enabled=False)
    desk.teach("refund", "parcel", name="more", at=200.0, seed=1)
    desk.turn(lora__enabled=False)
    desk.forget("ann", 1000.0)

    def stage(name: str) -> None:
        if name == "judge head":
            desk.registry().promote("v000001-head", reason="safer", by="bo")

    late = desk.turn(stage=stage, lora__enabled=False)
    assert [one.outcome for one in late.candidates] == ["stale"]
    owed = desk.turn(lora__enabled=False)
    assert not owed.empty
    assert (owed.promoted, desk.registry().card(owed.champion).unlearned) == (True, 6)
    assert desk.turn(lora__enabled=False).empty
