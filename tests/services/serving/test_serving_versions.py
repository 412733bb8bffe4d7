from __future__ import annotations

import pytest

from perdure.errors import RegistryError, StalePromotion, VersionDamaged
from perdure_services.serving import versions as versions_module


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        yield client


def refused(response, status, part):
    error = response.json()["error"]
    assert response.status_code == status, error
    assert part in error["what"]
    return error


def version_of(client):
    return client.post("/v1/predict", json={"text": "order"}).json()["version"]


def test_what_is_served_and_what_could_be_is_listed(client, registry, publish):
    publish(registry, "v2", promote=False, parent="v1")
    listed = client.get("/v1/versions").json()
    assert listed["champion"]["version"] == listed["serving"]["version"] == "v1"
    assert listed["serving"]["promotion"] == 1
    assert listed["serving"]["labels"] == 3
    assert listed["problem"] is None
    assert [(entry["number"], entry["version"], entry["by"]) for entry in listed["promotions"]] == [(1, "v1", "tests")]
    assert [(card["name"], card["parent"], card["kind"]) for card in listed["versions"]] == [
        ("v1", None, "first"),
        ("v2", "v1", "head"),
    ]
    assert listed["versions"][1]["verdict"] == "v2 is better."
    assert listed["versions"][1]["metrics"] == {"accuracy": 0.5}
    assert listed["versions"][1]["labels"] == 3


def test_a_card_that_cannot_be_read_is_listed_with_its_problem(client, registry, monkeypatch):
    def damaged(name):
        raise VersionDamaged(f"the card of {name} is altered")

    monkeypatch.setattr(registry, "card", damaged)
    (card,) = client.get("/v1/versions").json()["versions"]
    assert (card["name"], card["problem"]) == ("v1", "the card of v1 is altered")


def test_an_empty_registry_is_listed_as_empty(serving):
    with serving() as client:
        assert client.get("/v1/versions").json() == {
            "champion": None,
            "serving": None,
            "problem": None,
            "promotions": [],
            "versions": [],
        }


def test_promoting_and_rolling_back_change_what_answers(client, registry, publish, until):
    publish(registry, "v2", promote=False, parent="v1")
    promoted = client.post("/v1/versions/v2/promote", json={"reason": "it is better"}).json()
    assert promoted["promotion"]["number"] == 2
    assert promoted["promotion"]["version"] == "v2"
    assert promoted["promotion"]["kind"] == "promote"
    assert (promoted["promotion"]["by"], promoted["promotion"]["reason"]) == ("api", "it is better")
    until(lambda: version_of(client) == "v2")
    back = client.post("/v1/rollback").json()
    assert (back["promotion"]["number"], back["promotion"]["version"]) == (3, "v1")
    assert back["promotion"]["kind"] == "rollback"
    assert back["serving"] in {"v2", "v1"}, "what serves at that moment: it may have been followed already"
    until(lambda: version_of(client) == "v1")
    assert registry.promotions()[-1].reason == "rolled back by hand"


def test_a_rollback_to_what_knows_forgotten_rows_says_so(client, registry, publish):
    publish(registry, "v2", parent="v1", created=2.0, unlearned=3)
    assert client.post("/v1/versions/v2/promote").json()["knows_forgotten"] is False
    back = client.post("/v1/rollback").json()
    assert (back["promotion"]["version"], back["knows_forgotten"]) == ("v1", True)


def test_a_promotion_is_followed_at_once_not_after_the_interval(registry, publish, serving, until):
    publish(registry, "v1")
    publish(registry, "v2", promote=False)
    with serving(refresh_seconds=60) as client:
        client.post("/v1/versions/v2/promote")
        until(lambda: version_of(client) == "v2")


def test_an_unknown_version_is_not_found_and_the_nearest_are_named(client, registry, publish):
    publish(registry, "v000007-head", promote=False)
    error = refused(client.post("/v1/versions/v000007-haed/promote"), 404, "v000007-head")
    assert error["value"] == "v000007-haed"
    for name in ("..%2F..%2Fetc", "%00", "a%20b", "%ED%A0%80"):
        assert client.post(f"/v1/versions/{name}/promote").status_code == 404
    assert registry.champion().number == 1


def test_there_may_be_nothing_to_roll_back_to(client, serving, registry, publish):
    refused(client.post("/v1/rollback"), 409, "v1")
    publish(registry, "v2")
    assert client.post("/v1/rollback").status_code == 200
    refused(client.post("/v1/rollback"), 409, "v1")


def test_an_empty_registry_has_nothing_to_roll_back_to(serving):
    with serving() as client:
        refused(client.post("/v1/rollback"), 409, "nothing")


def test_a_bad_reason_is_refused(client, registry):
    for body in ({"reason": ""}, {"reason": "x" * 501}, {"raeson": "a"}, {"reason": 7}):
        assert client.post("/v1/rollback", json=body).status_code == 422
    assert registry.champion().number == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(StalePromotion("somebody was faster"), 409), (RegistryError("no route"), 503), (VersionDamaged("altered"), 409)],
)
def test_what_the_registry_refuses_is_said(client, registry, monkeypatch, error, status):
    def fail(*args, **kwargs):
        raise error

    for method in ("promote", "rollback", "champion"):
        monkeypatch.setattr(registry, method, fail)
    refused(client.post("/v1/versions/v1/promote"), status, str(error))
    refused(client.post("/v1/rollback"), status, str(error))


def test_who_was_slower_is_told_to_look_again(client, registry, monkeypatch):
    def fail(*args, **kwargs):
        raise StalePromotion("somebody was faster")

    monkeypatch.setattr(registry, "rollback", fail)
    assert refused(client.post("/v1/rollback"), 409, "somebody was faster")["do"].endswith("decide again")


def test_the_newest_versions_are_listed(client, registry, publish, monkeypatch):
    for name in ("v2", "v3"):
        publish(registry, name)
    monkeypatch.setattr(versions_module, "SHOWN", 2)
    listed = client.get("/v1/versions").json()
    assert [one["name"] for one in listed["versions"]] == ["v2", "v3"]
    assert [one["number"] for one in listed["promotions"]] == [2, 3]


def test_a_damaged_champion_at_the_start_is_stood_in_for_and_the_list_says_so(registry, publish, shelf, serving):
    publish(registry, "v1")
    publish(registry, "v2")
    shelf.errors["v2"] = VersionDamaged("head.safetensors is altered")
    with serving() as client:
        listed = client.get("/v1/versions").json()
        assert listed["champion"]["version"] == "v2"
        assert listed["serving"]["version"] == "v1"
        assert "head.safetensors is altered" in listed["problem"]
        assert version_of(client) == "v1"
        assert client.get("/readyz").status_code == 200
