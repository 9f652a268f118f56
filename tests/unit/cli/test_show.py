"""`vllm-safe show` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_safe.cli.main import main
from vllm_safe.common.sizes import GIB
from vllm_safe.host.host_facts import Host, SwapArea


@pytest.mark.parametrize("limits", ["{}", "{swap_max: 1T}"])
@pytest.mark.parametrize("swaps", [(), (SwapArea("/swapfile", "file", 128 * GIB, 0),)])
def test_nothing_is_said_to_be_on_that_is_not(
    limits: str, swaps: tuple[SwapArea, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first start the limits include the swap that it creates."""
    monkeypatch.setattr("vllm_safe.cli.show.read_host", lambda: Host(memory=16 * GIB, swaps=swaps))
    config = tmp_path / "config.yaml"
    config.write_text(f"models: {{x: {{command: [/bin/sh], limits: {limits}}}}}\n")
    assert main(["show", "x", "--config", str(config)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("/swapfile is not on yet;") is not bool(swaps)
    assert not [line for line in rest if "is on" in line]
    assert any("128 GiB" in line for line in rest if line.startswith("  swap_max "))
    assert main(["show", "x", "--config", str(config), "--json"]) == 0
    assert "is on" not in json.loads(capsys.readouterr().out)["Limits"]["swap_max"]["origin"]
