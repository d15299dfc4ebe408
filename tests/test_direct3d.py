"""Whether Direct3D 12 and DirectML devices can be made: what a child says of it, and how that is told."""

from __future__ import annotations

import sys
import uuid

import pytest

from coe_cli.probes import ProbeFailed, d3d12
from coe_cli.probes.d3d12 import DeviceTrial
from coe_cli.providers import runtime_of
from coe_cli.providers.dml import trial_finding

TRIALS = [
    (
        DeviceTrial("Radeon", feature_level="12_1", directml_level="6.4"),
        "ok",
        "Radeon: a Direct3D 12 device can be made, feature level 12_1, and a DirectML device, feature level 6.4",
        "",
    ),
    (
        DeviceTrial("Old card", error="D3D12CreateDevice was refused (887A0004)"),
        "error",
        "Old card: no Direct3D 12 device can be made: the graphics adapter or its driver has not what DirectML needs (887A0004)",
        "driver",
    ),
    (
        DeviceTrial("Radeon", feature_level="12_0", directml_error="DMLCreateDevice1 was refused (887A0022)"),
        "error",
        "feature level 12_0, and no DirectML device: the graphics adapter is not available now",
        "machine itself",
    ),
    (
        DeviceTrial("Card", error="something new"),
        "error",
        "Card: no Direct3D 12 device can be made: something new",
        "-p embedded",
    ),
]


@pytest.mark.parametrize(("trial", "level", "message", "fix"), TRIALS)
def test_how_a_trial_is_told(trial: DeviceTrial, level: str, message: str, fix: str) -> None:
    finding = trial_finding(trial)
    assert (finding.check, finding.level) == ("direct3d", level)
    assert message in finding.message
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("import time; time.sleep(60)", "took longer than 1 s"),
        ("import os; os._exit(5)", "code 0x5"),
        ("print('no list')", "code 0x0"),
        pytest.param(
            d3d12._START,
            "DXGI is part of Windows",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="it is there"),
        ),
    ],
)
def test_a_child_that_hangs_or_ends_is_told(monkeypatch: pytest.MonkeyPatch, child: str, message: str) -> None:
    monkeypatch.setattr(d3d12, "_START", child)
    if "sleep" in child:
        monkeypatch.setattr(d3d12, "_TIMEOUT_S", 1.0)
    with pytest.raises(ProbeFailed, match=message):
        d3d12.try_devices()
    (finding,) = runtime_of("dml").check_cards([object()], platform="win32")  # type: ignore[list-item]
    assert finding.level == "error"
    assert finding.fix


def test_the_child_s_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d3d12, "_START", """print('noise'); print('[{"adapter": "A", "feature_level": "12_0"}]')""")
    assert d3d12.try_devices() == [DeviceTrial("A", feature_level="12_0")]


def test_the_interfaces_have_their_documented_ids() -> None:
    assert uuid.UUID(bytes_le=bytes(d3d12.IID_D3D12_DEVICE)) == uuid.UUID("189819f1-1db6-4b57-be54-1821339b85f7")
    assert uuid.UUID(bytes_le=bytes(d3d12.IID_DML_DEVICE)) == uuid.UUID("6dbd6437-96fd-423f-a98c-ae5e7c2a573f")


def test_elsewhere_nothing_is_tried() -> None:
    assert runtime_of("dml").check_cards([object()], platform="linux") == []  # type: ignore[list-item]
