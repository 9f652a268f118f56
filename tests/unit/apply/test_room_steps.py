"""Making room: what stops, when, and what a start waits for. systemctl only logs what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.apply import room_steps
from vllm_safe.apply.room_steps import MakeRoom, NoRoom
from vllm_safe.common import run_lock
from vllm_safe.common.errors import Failure
from vllm_safe.common.run_lock import hold_lock
from vllm_safe.common.sizes import GIB
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.contract.launch_file import Launch
from vllm_safe.host.demand_facts import DemandFacts, LaunchFacts, UnitFacts

MACHINE = GatewayFile(
    models=tuple(GatewayModel(name, (name,), "", ("127.0.0.1", 1), on_demand=True, memory=6 * GIB) for name in ("one", "two")),
    memory=8 * GIB,
)
ASKS = UnitFacts(job=20)


def facts(unit: UnitFacts, *, request: int, proxy: int = 10, now: float = 1000.0) -> DemandFacts:
    """Return the facts where `one` is up, and `two` is to start. proxy: the job of a client of `two`."""
    return DemandFacts(
        now=now,
        models={"one": unit, "two": ASKS},
        proxies={"two": UnitFacts(job=proxy)},
        launches={"one": LaunchFacts(Launch("one", request=request))},
    )


SERVES = UnitFacts("active", "running", begun=100.0, ready=160.0)
NOTHING = DemandFacts(now=1001.0, models={"two": ASKS}, proxies={"two": UnitFacts(job=10)})


class Scene:
    """What is read at each look, and what was done."""

    def __init__(self, log: Path) -> None:
        self.looks: list[DemandFacts] = []
        self._log = log

    def read(self) -> DemandFacts:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def make_room(self) -> list[str]:
        with ExitStack() as held:
            MakeRoom("two", MACHINE, held, self.read, self._log.with_name).run()
            waited: list[str] = []
            with pytest.raises(InterruptedError), hold_lock("room", lambda: self._interrupt(waited)):
                pass
            assert waited == ["waits"]  # the lock is kept until the start is prepared
        with hold_lock("room", lambda: pytest.fail("the lock is kept")):
            return self._log.read_text().splitlines() if self._log.exists() else []

    @staticmethod
    def _interrupt(waited: list[str]) -> None:
        waited.append("waits")
        raise InterruptedError


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/log\ncat {tmp_path}/one > {tmp_path}/note\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(run_lock, "RUN", tmp_path)
    monkeypatch.setattr(room_steps, "_LOOK_EVERY", 0.01)
    return Scene(tmp_path / "log")


def test_a_stop_that_a_client_cancelled_is_repeated(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/log\ntest "$(wc -l < {tmp_path}/log)" -ge 3\n')
    scene.looks = [facts(SERVES, request=5)] * 3 + [NOTHING]
    assert scene.make_room() == ["stop -- vllm@one.service"] * 3


def test_a_stop_that_systemd_refuses_for_ever_is_an_error(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho no >&2; exit 1\n")
    scene.looks = [facts(SERVES, request=5)]
    with pytest.raises(Failure, match="no"):
        scene.make_room()


def test_what_is_in_the_way_stops(scene: Scene) -> None:
    scene.looks = [facts(SERVES, request=5), NOTHING]
    assert scene.make_room() == ["stop -- vllm@one.service"]


def test_a_stop_is_told_what_it_is_for(scene: Scene, tmp_path: Path) -> None:
    scene.looks = [facts(SERVES, request=5), NOTHING]
    scene.make_room()
    assert (tmp_path / "note").read_text() == "two"  # while the model stops
    assert not (tmp_path / "one").exists()


def test_a_model_that_has_just_loaded_stays_for_as_long_as_that_took(scene: Scene) -> None:
    told: list[dict[str, str]] = []
    early = facts(SERVES, request=5, now=219.999)
    scene.looks = [early, facts(SERVES, request=5, now=220.0), NOTHING]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room_steps, "notify", lambda **fields: told.append(fields))
        assert scene.make_room() == ["stop -- vllm@one.service"]
    assert told[0]["STATUS"].startswith("waiting 1 s for one to have been up for as long as its load took")
    assert int(told[0]["EXTEND_TIMEOUT_USEC"]) >= 60_000_000
    assert told[-1]["STATUS"] == "stopping one, whose running requests are answered first"


def test_a_person_waits_for_nobodys_time(scene: Scene) -> None:
    scene.looks = [facts(SERVES, request=5, proxy=0, now=161.0), NOTHING]
    assert scene.make_room() == ["stop -- vllm@one.service"]


def test_a_request_is_refused_beside_what_a_person_started(scene: Scene) -> None:
    scene.looks = [facts(SERVES, request=0)]
    with pytest.raises(NoRoom, match="there is no room for two") as refused:
        scene.make_room()
    assert refused.value.hint == "Run: systemctl stop vllm@one.service"


def test_a_person_is_not(scene: Scene) -> None:
    scene.looks = [facts(SERVES, request=0, proxy=0)]
    assert scene.make_room() == []


def test_nothing_stops_for_a_model_that_nobody_starts(scene: Scene, tmp_path: Path) -> None:
    at = facts(SERVES, request=5)
    scene.looks = [replace(at, models={**at.models, "two": UnitFacts()})]
    with ExitStack() as held:
        MakeRoom("two", MACHINE, held, scene.read).run()
        with hold_lock("room", lambda: pytest.fail("the lock is kept")):
            assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (NOTHING, "stop no other model for two: there is room"),
        (facts(SERVES, request=5), "stop vllm@one.service, to make room for two"),
        (facts(SERVES, request=5, now=190.0), "stop vllm@one.service in 30 s, to make room for two"),
        (facts(UnitFacts("activating", "start"), request=5), "stop vllm@one.service when it has loaded, to make room for two"),
        (facts(SERVES, request=0), "refuse the start: there is no room for two, which needs 6.0 GiB of RAM"),
    ],
)
def test_each_is_described_without_being_done(at: DemandFacts, text: str) -> None:
    read: Callable[[], DemandFacts] = lambda: at  # noqa: E731 - one value
    assert MakeRoom("two", MACHINE, ExitStack(), read).describe().startswith(text)
