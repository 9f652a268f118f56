"""Tests of the removal of what names a machine and its people."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from vllm_safe.bundle.identity import ADDRESS, HOST, ID, USER, Identity
from vllm_safe.report.redact import REMOVED

CASES = Path(__file__).parents[2] / "cases/why"
MACHINE_ID = "0123456789abcdef0123456789abcdef"
HERE = Identity(
    secrets=frozenset({"planted", "1", "k" * 80}),
    hosts=frozenset({"tower", "tower.lan.example", "nas-7", "vllm", "localhost"}),
    users=frozenset({"alice", "max", "root", "Alice Liddell"}),
    homes=frozenset({"/srv/people/alice"}),
    ids=frozenset({MACHINE_ID}),
)


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("MY_VALUE planted config.yaml:3", f"MY_VALUE {REMOVED} config.yaml:3"),
        ("Authorization: Bearer abcdefgh1234", f"Authorization: {REMOVED}"),
        (f"unknown key '{'k' * 57}...'", f"unknown key '{REMOVED}...'"),
        ("on tower, TOWER.lan.example and nas-7:", f"on {HOST}, {HOST} and {HOST}:"),
        ("/home/alice/models, ~alice, /home/somebody", f"/home/{USER}/models, ~{USER}, /home/{USER}"),
        ("/srv/people/alice/x", f"/home/{USER}/x"),
        ("started by Alice Liddell (alice), ALICE_2", f"started by {USER} ({USER}), {USER}_2"),
        ("owner max, user max; /data/max/x for max", f"owner max, user {USER}; /data/{USER}/x for {USER}"),
        ('INFO: 10.0.0.7:51432 - "GET /"', f'INFO: {ADDRESS}:51432 - "GET /"'),
        ("from 2001:db8::1: refused, fe80::1%eth0", f"from {ADDRESS}: refused, {ADDRESS}%eth0"),
        ('INFO: 2001:db8::1:51432 - "GET /"', f'INFO: {ADDRESS}:51432 - "GET /"'),
        ("[2001:db8::1]:8000 ::ffff:10.0.0.7", f"[{ADDRESS}]:8000 ::ffff:{ADDRESS}"),
        ("link/ether 52:54:00:ab:cd:ef brd", f"link/ether {ADDRESS} brd"),
        ("mail somebody@example.org", f"mail {ADDRESS}"),
        ("https://hub.corp.example/x http://user:pw@mirror:80/", f"https://{HOST}/x http://{REMOVED}@{HOST}:80/"),
        ("HTTPConnectionPool(host='hub.corp.example', port=443)", f"HTTPConnectionPool(host='{HOST}', port=443)"),
        ("GPU-12345678-9abc-def0-1234-56789abcdef0 is lost", f"{ID} is lost"),
        ("/dev/disk/by-id/ata-Disk_S3Z9NB0K on /", f"/dev/disk/by-id/{ID} on /"),
        (f"machine {MACHINE_ID}", f"machine {ID}"),
    ],
)
def test_what_names_somebody_goes(line: str, cleaned: str) -> None:
    assert HERE.clean(line) == cleaned
    assert HERE.clean(cleaned) == cleaned, "again, nothing changes"


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-28 08:30:57 [multiproc_executor.py:153] master_addr=127.0.0.1, http://localhost:8000/health, ::1, 0.0.0.0:8000",
        "NVRM: Xid (PCI:0000:44:00): 79, pid=4711, GPU 00000000:44:00.0; 0000:01:00.0",
        "vllm@qwen72b.service, vllm-safe-record@x.service, user@1000.service, vllm@other.one",
        "driver 580.159.04, vllm 0.32.0, torch 2.13.0+cu130, 10.5 s",
        "max-model-len: 8192, memory.max, towers, alices",
        "see https://docs.vllm.ai/x https://huggingface.co/Qwen/Qwen2.5-72B https://raw.githubusercontent.com/x",
        "at::native::add c10::Error std::vector<a::b> torch::jit",
        "/var/lib/vllm-safe/home/.config /var/lib/vllm-safe/models/a/b /mnt/models/x",
        "user vllm, root, this vllm server",
    ],
)
def test_what_names_nobody_stays(line: str) -> None:
    assert HERE.clean(line) == line


def test_a_key_of_several_lines_goes_with_all_of_them() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\njournal: MIIEow\njournal: IBAAK\n-----END RSA PRIVATE KEY-----"
    assert HERE.clean(f"before\n{key}\nafter") == f"before\n{REMOVED}\nafter"
    assert HERE.clean("before\n-----BEGIN PRIVATE KEY-----\nMIIEow") == f"before\n{REMOVED}"


def test_nothing_is_known_is_no_pattern_for_everything() -> None:
    assert Identity().clean("any text, of tower") == "any text, of tower"
    assert Identity(secrets=frozenset({""}), users=frozenset({""}), hosts=frozenset({""})).clean("any text") == "any text"


def test_what_servers_print_stays_readable() -> None:
    """Of the outputs of servers in tests/cases, only lines with a home folder, an address, an ID or a foreign URL change."""
    placeholders = (USER, ADDRESS, ID, HOST)
    changed = 0
    for path in sorted(CASES.glob("*.txt")):
        for line in path.read_text(errors="replace").splitlines():
            if (cleaned := HERE.clean(line)) != line:
                changed += 1
                assert any(word in cleaned for word in placeholders), line
                assert len(cleaned.split()) == len(line.split()), line
    assert 20 < changed < 200


PIECES = ["a.", "a@", "a-", "::", ":", "1.", "1:", "://", "/home/", "host='", "ab:", "f", "GPU-", "-", "@", "12345678-", " ", "/", "x", "."]


def test_hostile_lines_take_no_more_time_than_others() -> None:
    chance = random.Random(0)  # noqa: S311 - seeded, so that the lines are the same each time
    units = [first + second for first in PIECES for second in PIECES]
    units += ["".join(chance.choices(PIECES, k=chance.randint(3, 6))) for _ in range(300)]
    for unit in units:
        line = (unit * 2000)[:2000]
        begun = time.process_time()
        HERE.clean(line)
        assert time.process_time() - begun < 0.05, unit  # the longest line that is recorded has twice as much
