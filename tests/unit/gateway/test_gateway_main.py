"""The process: its settings, its key, signals and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.builders.gateway_rig import Rig, free_port, running_gateway, wait_until
from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.gateway import gateway_main
from vllm_safe.gateway.gateway_main import Gateway

ROOT = Path(__file__).parents[3]


def test_an_edit_is_followed_while_it_serves(rig: Rig) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), running_gateway(rig), ClientSession() as client:
            async with client.get(f"{rig.url}/v1/models") as answer:
                assert (await answer.json())["data"] == []
            rig.add("a")
            rig.port = free_port()
            rig.write()
            os.kill(os.getpid(), signal.SIGHUP)
            await wait_until(lambda: connects(rig.port))
            async with client.get(f"{rig.url}/v1/models") as answer:
                assert [one["id"] for one in (await answer.json())["data"]] == ["a", "org/a"]

    asyncio.run(run())


def connects(port: int) -> bool:
    listening = Path("/proc/net/tcp").read_text().upper()
    return f"0100007F:{port:04X} 00000000:0000 0A" in listening


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"host": "256.0.0.1", "models": [], "gpus": {}}', '{"enabled": false, "port": 1, "models": [], "gpus": {}}'],
)
def test_a_file_that_cannot_be_used_changes_nothing(rig: Rig, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = []

    async def run() -> None:
        async with asyncio.timeout(60), running_gateway(rig), ClientSession() as client:
            (rig.folder / "gateway.json").write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            await wait_until(lambda: said.append(capfd.readouterr().err) or "".join(said))
            async with client.get(f"{rig.url}/health") as answer:
                assert answer.status == 200

    asyncio.run(run())
    assert "the settings from before stay in force" in "".join(said)


def test_running_answers_end_and_those_that_do_not_are_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_main, "PATIENCE", 1.0)
    model, loading, ending = rig.add("a"), rig.add("b"), rig.add("c")
    loading.load = 10

    async def run() -> None:
        async with asyncio.timeout(60), ClientSession(rig.url) as client:

            async def ask(name: str, **fields: object) -> tuple[int, str]:
                async with client.post("/v1/completions", json={"model": name, **fields}) as answer:
                    return answer.status, await answer.text()

            async with running_gateway(rig) as gateway:
                await ask("a")
                answers = [
                    asyncio.create_task(ask("c", do="wait")),
                    asyncio.create_task(ask("a", stream=True, do="wait in the middle")),
                    asyncio.create_task(ask("a", do="wait")),
                    asyncio.create_task(ask("b")),
                ]
                await wait_until(lambda: model.running == 2 and ending.running == 1 and loading.starts, 30)
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                gateway.stop()
                ending.release.set()
                await asyncio.sleep(0.1)
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
                writer.close()
                ended, streamed, whole, waiting = await asyncio.gather(*answers)
        assert ended[0] == 200
        assert streamed[0] == 200
        assert "the gateway was stopped in the middle of the answer" in streamed[1].split("data: ")[-1]
        assert whole[0] == 502
        assert waiting[0] == 503
        assert "the gateway is being restarted" in waiting[1]

    asyncio.run(run())


def test_without_its_file_it_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(Misuse) as caught:
        Gateway(str(tmp_path / "gateway.json"))
    assert caught.value.hint == "systemctl restart vllm-gateway writes it again"


def test_it_serves_only_if_the_configuration_says_so(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(GatewayFile(enabled=False).to_json())
    with pytest.raises(Misuse, match=r"gateway\.enabled is false"):
        Gateway(str(file))


def test_without_its_key_it_does_not_serve(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(rig.folder))
    with pytest.raises(Failure, match="cannot read the API key"):
        Gateway(rig.write())


def test_a_port_that_is_taken_is_told(rig: Rig) -> None:
    async def run() -> None:
        async with running_gateway(rig):
            with pytest.raises(Failure, match=f"cannot listen on 127.0.0.1:{rig.port}: "):
                await Gateway(rig.write()).run()

    asyncio.run(run())


def test_it_imports_no_tls_no_yaml_and_no_click() -> None:
    script = (
        "import sys; sys.argv=['x']\n"
        f"exec(open({str(ROOT / 'vllm_safe/gateway/__main__.py')!r}).read().replace('sys.exit(main())', '').replace('__file__', "
        f"{str(ROOT / 'vllm_safe/gateway/__main__.py')!r}.__repr__()))\n"
        "print(*sorted(name for name in ('ssl', '_ssl', '_hashlib', 'yaml', 'click', 'psutil', 'pynvml') if sys.modules.get(name)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
