"""What a refusal becomes over gRPC."""

from __future__ import annotations

import grpc

from perdure_services.serving.refusal import Refusal
from perdure_services.serving.rpc.status import code_of, details_of, trailers_of


def test_details_hold_no_halves_of_characters_and_no_keys():
    secret = f"perdure_{'0' * 12}_{'a' * 64}"
    refusal = Refusal(422, f"half \ud83d and {secret}", do="send it whole")
    assert details_of(refusal, "abc") == "half ? and perdure_000000000000_…: send it whole (request abc)"
    assert trailers_of(refusal) == ()
    assert code_of(Refusal(599, "what", do="do")) is grpc.StatusCode.UNKNOWN
