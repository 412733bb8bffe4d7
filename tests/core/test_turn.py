from __future__ import annotations

import json

from perdure.turn import CandidateResult, TurnResult


def candidate(outcome: str = "promote", version: str = "v000002-head") -> CandidateResult:
    return CandidateResult(version, "head", outcome, f"{outcome}, because.", 1.25, 1.0)


def result(**fields) -> TurnResult:
    return TurnResult(**{"number": 2, "champion_before": "v1", "champion": "v000002-head", **fields})


def test_a_result_comes_back_as_it_was():
    told = result(candidates=(candidate(), candidate("keep", "v000002-lora")), gate={"learn": 3}, drifted=True)
    assert TurnResult.decode(json.dumps(told.to_json())) == told
    assert TurnResult.decode(json.dumps(result().to_json())) == result()


def test_promoted_says_that_this_turn_made_the_champion():
    assert result(candidates=(candidate(),)).promoted
    assert result(candidates=(candidate("keep"), candidate("promote", "v000002-lora"))).promoted
    assert not result(candidates=(candidate("stale"),)).promoted, "somebody else has changed the champion"
    assert not result().promoted


def test_an_empty_turn_had_neither_rows_nor_candidates():
    assert result(note="nothing new").empty
    assert not result(gate={"learn": 0}).empty
    assert not result(candidates=(candidate(),)).empty


def test_the_line_says_rows_fates_and_what_is_served():
    told = result(
        candidates=(candidate(), candidate("keep", "v000002-lora")), gate={"learn": 3, "skip": 0, "pseudo": 1}
    )
    assert told.line() == (
        "turn 2: learn 3, pseudo 1; v000002-head promote in 1.2 s; v000002-lora keep in 1.2 s; serving v000002-head"
    )
    assert result(note="too little to learn from").line() == (
        "turn 2: no rows; too little to learn from; serving v000002-head"
    )
    assert TurnResult(1, None, None).line() == "turn 1: no rows; nothing to learn; serving none"
