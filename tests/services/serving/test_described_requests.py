"""Requests made from the API's own description, right ones and wrong ones: every answer is as the description says.

`make test-fuzz` sends 10,000 of them.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from perdure_services.serving.description import STATES

REQUESTS = int(os.environ.get("PERDURE_FUZZ", "200"))
SEED = int(os.environ.get("PERDURE_FUZZ_SEED", "0"))

THERE = {"name": "perdure", "version": "v1"}
"""What path parameters must name to get any further than 404."""

BEYOND_SCHEMAS = ("shape", "knows no label")
"""Parts of refusals for what no schema can say: that a tensor's data fill its shape, which labels a version knows."""


@pytest.fixture
def described(guarded, listening, registry, publish, make, file):
    """The description, the URL, and a session with a key that may do everything."""
    publish(registry, "v1")
    publish(registry, "v2", parent="v1")
    key = make("all", "predict", "feedback", "explain", "admin", "metrics")
    url, _ = listening(serving__keys=str(file))
    with requests.Session() as session:
        session.headers["X-API-Key"] = key
        yield schemathesis.openapi.from_dict(session.get(f"{url}/openapi.json").json()), url, session


def not_for(response):
    """Checks that cannot be made of this answer."""
    # The session always has a good key, whatever else is sent; test_serving_access.py looks at bad ones.
    yield ignored_auth
    if response.status_code == 501:
        # The models of these tests have no embeddings.
        yield not_a_server_error
    if response.status_code == 413:
        # Too much for a reason that no schema can say, such as bytes, stands in for being wrong as well.
        yield negative_data_rejection
    if response.status_code == 422 and any(part in response.json()["detail"] for part in BEYOND_SCHEMAS):
        yield positive_data_acceptance


def ways(schema):
    """Each operation, with what goes with its description, and what goes against it where anything can."""
    for found in schema.get_all_operations():
        operation = found.ok()
        yield operation, GenerationMode.POSITIVE
        # Whatever stands in the path of a model is a name.
        if operation.body or "subject" in operation.path:
            yield operation, GenerationMode.NEGATIVE


def test_every_answer_is_as_described(described):
    schema, url, session = described
    all_ways = list(ways(schema))
    each = -(
        -REQUESTS // sum(1 for operation, _ in all_ways if operation.body or "security" in operation.definition.raw)
    )
    statuses = Counter()
    for operation, mode in all_ways:
        there = {name: value for name, value in THERE.items() if f"{{{name}}}" in operation.path}

        @seed(SEED)
        @settings(
            max_examples=each,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode, path_parameters=there) if there else operation.as_strategy(mode))
        def ask(case):
            response = case.call(base_url=url, session=session)
            statuses[response.status_code] += 1
            case.validate_response(response, excluded_checks=list(not_for(response)))

        ask()
    print(dict(sorted(statuses.items())))
    assert statuses.total() >= REQUESTS
    assert not [status for status in statuses if status >= 500 and status != 501]
    assert min(statuses[200], statuses[202], statuses[400], statuses[422]) > REQUESTS / 50, "all kinds were asked for"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/predict", {"text": "order", "explain": "neighbours"}, 501),
        *(
            (
                f"/v2/models/{{name}}{version}/infer",
                {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["order"]}],
                    "outputs": [{"name": "abstained"}],
                },
                409,
            )
            for version in ("", "/versions/{version}")
        ),
    ],
)
def test_what_goes_with_the_schema_but_not_with_the_version_is_described(described, path, body, status):
    schema, url, session = described
    response = session.post(url + path.format(name="perdure", version="v2"), json=body)
    assert response.status_code == status
    schema[path]["POST"].validate_response(response)
    assert str(status) in schema[path]["POST"].definition.raw["responses"]


def test_the_description_names_every_refusal(described):
    schema, url, session = described
    raw = session.get(f"{url}/openapi.json").json()
    for path, operations in raw["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                assert "X-Request-ID" in response["headers"]
                if int(status) >= 400 and not (status == "503" and STATES.search(path)):
                    assert list(response["content"]) == ["application/problem+json"], f"{method} {path} {status}"
            assert ("security" in operation) == ("401" in operation["responses"])
            assert ("requestBody" in operation) == ("415" in operation["responses"])
    assert "HTTPValidationError" not in raw["components"]["schemas"]
    assert schema.statistic.operations.total == sum(len(operations) for operations in raw["paths"].values())


def test_what_nobody_describes_is_not_there(described):
    schema, url, session = described
    for found in schema.get_all_operations():
        operation = found.ok()
        path = operation.path.format(**THERE, subject="anna")
        response = session.request("PROPFIND", f"{url}{path}")
        assert response.status_code == 405
        assert response.headers["Allow"]
        assert response.headers["Content-Type"] == "application/problem+json"


def test_a_subject_is_forgotten_whatever_it_holds(described, stream, records):
    _, url, session = described
    for subject in ("a/b", "a\nb", "x\n", "a b", "%2F", "..", "?x=1", "é"):
        session.post(f"{url}/v1/predict", json={"text": "order", "subject": subject})
        prepared = requests.Request("DELETE", url, headers=dict(session.headers)).prepare()
        prepared.url = f"{url}/v1/subjects/{requests.utils.quote(subject, safe='')}".replace("..", "%2E%2E")
        assert session.send(prepared).status_code == 202, subject
        assert records(stream)[-1].subject == subject
