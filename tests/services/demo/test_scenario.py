from __future__ import annotations

import pytest

from perdure.errors import DataError, UsageError
from perdure_services.demo.scenario import find_data, read_scenario


def test_what_comes_when(scenario):
    assert [row.text for row in scenario.opening] == ["where is my order", "refund please"]
    first, second = scenario.waves
    assert (first.number, first.first, first.end, first.new_labels) == (1, 0, 4, ("password",))
    assert (second.number, second.first, second.end, second.new_labels) == (2, 4, 6, ("invoice",))
    assert len(scenario.evaluation) == 4
    assert [scenario.requests[number].text for number in (0, 4)] == ["order late", "order again"]
    assert [scenario.wave_of(number).number for number in (0, 3, 4, 5, 6, 99)] == [1, 1, 2, 2, 2, 2]


def test_what_is_said_of_a_request(scenario):
    said = [(request.said, request.wrong) for request in scenario.waves[0].requests]
    assert said == [("order", False), ("password", False), ("order", True), (None, False)]


def test_the_first_waves_alone(data):
    assert [wave.number for wave in read_scenario(data(), 1).waves] == [1]
    with pytest.raises(UsageError, match=r"--waves cannot be 3: .* has 2"):
        read_scenario(data(), 3)


def test_another_file_is_another_scenario(data, scenario):
    changed = read_scenario(data(evaluation=[{"text": "an order", "label": "order"}]))
    assert changed.digest != scenario.digest


def test_a_broken_row_has_its_line(data):
    folder = data()
    with (folder / "stream.jsonl").open("a") as file:
        file.write('{"text": "no label"}\n')
    with pytest.raises(DataError, match="line 9"):
        read_scenario(folder)


@pytest.mark.parametrize("sessions", [(0, 0), (1, 2)])
def test_an_opening_and_a_wave_are_needed(data, sessions):
    rows = [{"text": f"text {number}", "label": "a", "session": session} for number, session in enumerate(sessions)]
    with pytest.raises(UsageError, match="session 0"):
        read_scenario(data(stream=rows))


def test_the_data_is_found_above_the_working_folder(tmp_path, data):
    made = data()
    (tmp_path / "examples").mkdir()
    made.rename(tmp_path / "examples" / "support_desk")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_data(None, below) == tmp_path / "examples" / "support_desk"


def test_the_data_of_the_checkout_is_found_from_anywhere(tmp_path):
    scenario = read_scenario(find_data(None, tmp_path))
    assert len(scenario.waves) == 6
    assert len({request.label for request in (*scenario.opening, *scenario.requests)}) >= 24


def test_a_folder_without_the_files_is_refused(tmp_path, data, monkeypatch):
    with pytest.raises(UsageError, match=r"no stream\.jsonl"):
        find_data(tmp_path)
    folder = data()
    (folder / "eval.jsonl").unlink()
    with pytest.raises(UsageError, match=r"no eval\.jsonl"):
        find_data(folder)
    monkeypatch.setattr("perdure_services.demo.scenario.__file__", str(tmp_path / "x" / "y" / "z" / "scenario.py"))
    with pytest.raises(UsageError, match="--data"):
        find_data(None, tmp_path)
