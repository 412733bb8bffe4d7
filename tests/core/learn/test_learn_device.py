from __future__ import annotations

import pytest
import torch

from perdure.errors import SettingError
from perdure.learn import device
from perdure.learn.device import computes_bfloat16, product_precision, training_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("found", [True, False])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert training_device("auto").type == ("cuda" if found else "cpu")
    assert training_device("cpu").type == "cpu"


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=r"setting device cannot be 'cuda'.*no GPU.*Set it to auto or cpu"):
        training_device("cuda")


@pytest.mark.parametrize("able", [True, False])
def test_auto_computes_in_what_the_device_has(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda _: able)
    assert product_precision("auto", CPU) == (torch.bfloat16 if able else torch.float32)
    assert product_precision("float32", CPU) == torch.float32


def test_a_precision_that_would_be_imitated_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda _: True)
    assert product_precision("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(device, "computes_bfloat16", lambda _: False)
    with pytest.raises(SettingError, match=r"lora\.precision cannot be 'bfloat16'.*cpu.*Set it to auto or float32"):
        product_precision("bfloat16", CPU)


def test_devices_are_asked_for_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert computes_bfloat16(CPU) == (avx or amx)
    assert not computes_bfloat16(torch.device("meta"))
