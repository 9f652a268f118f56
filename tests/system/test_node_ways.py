"""Two ways that README describes for a model over several machines: names in WireGuard, and a start of all from the first by ssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.lan import TUNNEL, Lan
from tests.beds.switch import NETWORK

pytestmark = [pytest.mark.nspawn, pytest.mark.engine, pytest.mark.long]

STARTER = "/var/lib/vllm-starter"
START = "systemctl start --no-block vllm@big"


@pytest.fixture(scope="module")
def lan(deb: Path) -> Iterator[Lan]:
    with Lan(deb, {"big": ("gpu1", "gpu2")}, wait="10min", tunnel=True) as machines:
        yield machines


def _lay_tunnel(lan: Lan) -> None:
    """Set WireGuard up as README says."""
    for bed in lan.beds:
        bed.run("umask 077 && wg genkey > /etc/wireguard/key")
    public = [bed.out("wg pubkey < /etc/wireguard/key") for bed in lan.beds]
    for number, bed in enumerate(lan.beds, 1):
        other = 3 - number
        text = (
            f"[Interface]\nAddress = {TUNNEL}.{number}/24\nListenPort = 51820\nPostUp = wg set %i private-key /etc/wireguard/key\n"
            f"[Peer]\nPublicKey = {public[other - 1]}\nAllowedIPs = {TUNNEL}.{other}/32\nEndpoint = {NETWORK}.{other}:51820\n"
        )
        bed.write("/etc/wireguard/wg0.conf", text, mode=0o600)
        bed.run("systemctl enable --now wg-quick@wg0")


def _allow_start(lan: Lan) -> None:
    """Let root on the first machine start the model on the second one, and nothing else, as README says."""
    first, second = lan.beds
    first.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    key = first.read("/root/.ssh/id_ed25519.pub").strip()
    second.run(f"adduser --system --quiet --shell /bin/sh --home {STARTER} vllm-starter")
    second.write(f"{STARTER}/.ssh/authorized_keys", f'restrict,command="sudo {START}" {key}\n')
    second.write("/etc/sudoers.d/vllm-starter", f"vllm-starter ALL=(root) NOPASSWD: /usr/bin/{START}\n", mode=0o440)
    first.run("ssh-keyscan -t ed25519 gpu2 > /root/.ssh/known_hosts")
    first.write(
        "/etc/systemd/system/vllm@big.service.d/others.conf",
        "[Service]\nExecStartPre=+-/usr/bin/ssh -o BatchMode=yes -o ConnectTimeout=10 vllm-starter@gpu2\n",
    )
    first.run("systemctl daemon-reload")


def test_all_are_started_from_the_first_and_meet_in_the_tunnel(lan: Lan) -> None:
    first, second = lan.beds
    _lay_tunnel(lan)
    _allow_start(lan)
    assert "gpu2 is 10.99.0.2, over wg0 from 10.99.0.1" in first.run("vllm-safe check", check=False).stdout
    lan.start("big", 0)
    lan.wait_for_all("big", "running", 300)
    lan.must_answer("big")
    listening = first.out("ss -ltnpH")
    assert f"{TUNNEL}.1:29500" in listening
    assert f"{NETWORK}.1:" not in listening
    assert int(first.out("wg show wg0 transfer").split()[1]) > 100_000  # bytes received: the traffic of the model went through the tunnel
    ssh = "ssh -o BatchMode=yes vllm-starter@gpu2"
    assert first.run(f"{ssh} id; {ssh} systemctl stop vllm@big", check=False).stdout == ""  # each is another start
    assert first.run("scp -o BatchMode=yes vllm-starter@gpu2:/etc/hostname /root/stolen", check=False).returncode
    assert second.run("runuser -u vllm-starter -- sudo -n systemctl stop vllm@big", check=False).returncode
    assert lan.told("big")[1] == "ready, serving big with gpu1, which answers"
