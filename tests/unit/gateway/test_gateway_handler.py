"""The gateway from the outside: real connections, servers of our own behind it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse, ClientSession, FormData
from yarl import URL

from tests.builders.gateway_rig import EVENT, TOKENS, Rig, running_gateway, wait_until
from vllm_safe.gateway import gateway_handler
from vllm_safe.gateway.request_body import IN_MEMORY, MOST_KEPT

Talk = Callable[[ClientSession], Awaitable[None]]


def talk(rig: Rig, what: Talk) -> None:
    """Run the gateway, and a client."""

    async def run() -> None:
        async with asyncio.timeout(60), running_gateway(rig), ClientSession(rig.url) as client:
            await what(client)

    asyncio.run(run())


async def ask(
    client: ClientSession, model: object = "a", path: str = "/v1/completions", **fields: object
) -> tuple[int, Any, ClientResponse]:
    async with client.post(path, json={**fields, "model": model}) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text, answer


def error(answer: tuple[int, Any, ClientResponse]) -> tuple[int, str]:
    status, content, _ = answer
    assert set(content["error"]) == {"message", "type", "param", "code"}
    return status, content["error"]["message"]


# --- what the gateway answers itself


def test_what_it_answers_itself_wakes_nothing(rig: Rig) -> None:
    model = rig.add("a")
    rig.add("b", on_demand=False)

    async def run(client: ClientSession) -> None:
        async with client.get("/health") as answer:
            assert answer.status == 200
        async with client.get("/v1/models") as answer:
            data = (await answer.json())["data"]
            assert [(one["id"], one["object"], one["state"]) for one in data] == [
                ("a", "model", "stopped"),
                ("org/a", "model", "stopped"),
                ("b", "model", "stopped"),
            ]
        async with client.get("/v1/models/org/a") as answer:
            assert (await answer.json())["id"] == "org/a"
        async with client.get("/v1/models/c") as answer:
            assert answer.status == 404
        async with client.get("/metrics") as answer:
            assert 'vllm_safe_gateway_model_ready{model="a"} 0' in await answer.text()
        async with client.head("/health") as answer:
            assert (answer.status, await answer.text()) == (200, "")

    talk(rig, run)
    assert model.starts == 0


@pytest.mark.parametrize("name", ["org/a", "org%2Fa", "or%67%2fa?x=1"])
def test_a_model_is_described_however_the_client_writes_its_name(rig: Rig, name: str) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        async with client.get(URL(f"/v1/models/{name}", encoded=True)) as answer:
            assert (answer.status, (await answer.json()).get("id")) == (200, "org/a")

    talk(rig, run)


@pytest.mark.parametrize("name", ["org%2Fb", "..%2F..%2Ftokenize", "%1b[31m", "%ff%00", "a%2"])
def test_a_name_with_escapes_is_only_looked_up(rig: Rig, name: str) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        url = URL(f"/v1/models/{name}", encoded=True)
        async with client.get(url) as answer:
            content = await answer.json()
            assert (answer.status, content["error"]["code"]) == (404, "model_not_found")
            assert content["error"]["message"].isprintable()
        async with client.post(url, json={"model": "a"}) as answer:
            assert answer.status == 404

    talk(rig, run)
    assert rig.models["a"].asked == []


def test_a_model_whose_requests_another_machine_accepts_is_not_listed_and_the_machine_is_named(rig: Rig) -> None:
    model, _ = rig.add("big"), rig.add("a")
    model.file = model.file._replace(first="gpu1")

    async def run(client: ClientSession) -> None:
        async with client.get("/v1/models") as answer:
            assert [one["id"] for one in (await answer.json())["data"]] == ["a", "org/a"]
        status, message = error(await ask(client, "big"))
        assert (status, "gpu1 accepts the requests" in message) == (421, True)
        async with client.get("/v1/models/big") as answer:
            assert answer.status == 421
        assert "the models are: a, org/a" in error(await ask(client, "unknown"))[1]

    talk(rig, run)
    assert model.starts == 0


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/invocations", "/tokenize", "/v1", "/v1/", "/v1/../tokenize", "/v1/%2e%2e/tokenize", "/v1//completions", "/v1/a%2fb"],
)
def test_what_vllm_answers_without_a_key_does_not_pass(rig: Rig, path: str) -> None:
    rig.add("a")

    async def run(_: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        body = b'{"model": "a"}'
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b'"error"' in answer
        writer.close()

    talk(rig, run)
    assert rig.models["a"].starts == 0


def test_a_method_without_a_model_is_told_so(rig: Rig) -> None:
    async def run(client: ClientSession) -> None:
        async with client.get("/v1/responses/resp_1") as answer:
            assert answer.status == 404
            assert "which model GET /v1/responses/resp_1 is for" in await answer.text()

    talk(rig, run)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends too early"),
        (b"[]", "not a JSON object"),
        (b"{}", "no field `model`"),
        (b'{"model": 1}', "no field `model`"),
        (b'{"model": null, "x": 1}', "no field `model`"),
        (b'{"model": "', "ends too early"),
        (b'{"model": "' + b"a" * 5000 + b'"}', "no field `model`"),
        (b'{"x": {"model": "a"}}', "no field `model`"),
    ],
)
def test_a_body_without_a_model_is_refused(rig: Rig, body: bytes, words: str) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        async with client.post("/v1/completions", data=body, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
            assert words in await answer.text()

    talk(rig, run)
    assert rig.models["a"].starts == 0


@pytest.mark.parametrize("name", ["b", "../a", "a\u0000", "\u001b[31ma", "a" * 4000, "/etc/passwd", "A", ""])
def test_an_unknown_or_hostile_name_is_only_looked_up(rig: Rig, name: str) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        status, words = error(await ask(client, name))
        assert status == 404
        assert "the models are: a, org/a" in words
        assert words.isprintable()
        assert len(words) < 200

    talk(rig, run)


def test_a_compressed_body_is_refused(rig: Rig) -> None:
    async def run(client: ClientSession) -> None:
        async with client.post("/v1/completions", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status == 415

    talk(rig, run)


def test_a_key_is_wanted_where_one_is_configured(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rig.add("a")
    (rig.folder / "api-key").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(rig.folder))

    async def run(client: ClientSession) -> None:
        for given in ("", "Bearer", "Bearer wrong", "Basic secret", "Bearer sécret"):
            async with client.post("/v1/completions", json={"model": "a"}, headers={"Authorization": given} if given else {}) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_api_key"
        async with client.get("/v1/models") as answer:
            assert answer.status == 401
        async with client.get("/health") as answer:
            assert answer.status == 200
        async with client.post("/v1/completions", json={"model": "a"}, headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200

    talk(rig, run)
    assert model.asked[0][1]["authorization"] == "Bearer secret"


def test_a_page_in_a_browser_may_ask(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.add("a")
    (rig.folder / "api-key").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(rig.folder))
    page = {"Origin": "http://chat.example"}

    async def run(client: ClientSession) -> None:
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        async with client.options("/v1/chat/completions", headers={**page, **wanted}) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        async with client.options("/tokenize", headers={**page, **wanted}) as answer:
            assert answer.status == 404
        async with client.get("/v1/models", headers=page) as answer:  # the page may read why
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, "*")
            assert answer.headers["Access-Control-Expose-Headers"] == "x-should-retry, WWW-Authenticate"

    talk(rig, run)


# --- what passes


def test_a_request_wakes_its_model_and_passes_unchanged(rig: Rig) -> None:
    model = rig.add("a")

    async def run(client: ClientSession) -> None:
        headers = {"Authorization": "Bearer of-the-model", "X-Request-Id": "7", "Connection": "keep-alive, X-Hop", "X-Hop": "1"}
        async with client.post("/v1/chat/completions?x=%20y", data=b'{"model":"org/a"} ', headers=headers) as answer:
            assert answer.status == 200
            assert await answer.json() == {"model": "a", "length": 18}
            assert answer.headers["X-Of-The-Model"] == "yes"
            assert "Keep-Alive" not in answer.headers

    talk(rig, run)
    (path, headers, body) = model.asked[0]
    assert (path, body, model.starts) == ("/v1/chat/completions?x=%20y", b'{"model":"org/a"} ', 1)
    assert (headers["authorization"], headers["x-request-id"]) == ("Bearer of-the-model", "7")
    assert "x-hop" not in headers
    assert headers["content-length"] == "18"


def test_a_stream_passes_event_by_event(rig: Rig) -> None:
    model = rig.add("a")

    async def run(client: ClientSession) -> None:
        await ask(client)
        async with client.post("/v1/completions", json={"model": "a", "stream": True, "do": "wait in the middle"}) as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.content.readexactly(len(EVENT)) == EVENT
            model.release.set()
            assert await answer.read() == EVENT * (TOKENS - 1)

    talk(rig, run)


@pytest.mark.parametrize("size", [IN_MEMORY - 1000, IN_MEMORY * 3, MOST_KEPT + (1 << 20)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_any_size_passes_once_the_model_is_known(rig: Rig, size: int, *, chunked: bool) -> None:
    model = rig.add("a")
    body = b'{"model": "a", "x": "' + b"y" * size + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 1 << 20):
            yield body[begin : begin + (1 << 20)]

    async def run(client: ClientSession) -> None:
        async with client.post("/v1/completions", data=pieces() if chunked else BytesIO(body)) as answer:
            assert (await answer.json())["length"] == len(body)

    talk(rig, run)
    assert model.asked[0][2] == body
    assert ("content-length" in model.asked[0][1]) is not chunked


def test_the_name_may_be_at_the_end_of_a_large_body(rig: Rig) -> None:
    model = rig.add("a")
    body = b'{"x": "' + b"\\\\y" * IN_MEMORY * 3 + b'", "model": "a"}'

    async def run(client: ClientSession) -> None:
        async with client.post("/v1/completions", data=BytesIO(body)) as answer:
            assert (await answer.json())["length"] == len(body)

    talk(rig, run)
    assert model.asked[0][2] == body


def test_a_body_that_does_not_name_its_model_for_too_long_is_refused(rig: Rig) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        async with client.post(
            "/v1/completions", data=BytesIO(b'{"x": "' + b"y" * (MOST_KEPT + (1 << 21)) + b'", "model": "a"}')
        ) as answer:
            assert answer.status == 413
            assert "put the field `model` before" in await answer.text()

    talk(rig, run)


def test_a_form_passes_by_its_field(rig: Rig) -> None:
    model = rig.add("a")
    rig.add("b")

    async def run(client: ClientSession) -> None:
        form = FormData()
        form.add_field("file", b"RIFF" + b"\r\n--x" * 100_000, filename="a.wav", content_type="audio/wav")
        form.add_field("model", "a")
        async with client.post("/v1/audio/transcriptions", data=form) as answer:
            assert (answer.status, (await answer.json()).get("model")) == (200, "a"), await answer.text()

    talk(rig, run)
    assert b"RIFF" in model.asked[0][2]
    assert model.asked[0][1]["content-type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--x--\r\n', b"y" * 100_000]
)
def test_a_form_without_a_model_is_refused(rig: Rig, body: bytes) -> None:
    async def run(client: ClientSession) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with client.post("/v1/audio/transcriptions", data=body, headers=headers) as answer:
            assert answer.status == 400, await answer.text()

    talk(rig, run)


def test_an_error_of_the_model_passes(rig: Rig) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        assert error(
            (400, (await ask(client, do="no"))[1] | {"error": {"message": "too\nlong", "type": 1, "param": 1, "code": 1}}, None)
        ) == (  # type: ignore[arg-type]
            400,
            "too\nlong",
        )
        assert (await ask(client, do="no"))[0] == 400

    talk(rig, run)


# --- servers and clients that go away


def test_a_client_that_goes_away_stops_the_request(rig: Rig) -> None:
    model = rig.add("a")

    async def run(client: ClientSession) -> None:
        await ask(client)
        for fields in ({"do": "wait"}, {"do": "wait in the middle", "stream": True}):
            task = asyncio.create_task(ask(client, **fields))
            await wait_until(lambda: model.running == 1)
            await asyncio.sleep(0.05)
            task.cancel()
            await wait_until(lambda: model.running == 0)
        assert rig.gateway is not None

    talk(rig, run)
    assert model.gone == 2


def test_a_server_that_ends_in_a_stream_is_told_as_an_event(rig: Rig) -> None:
    rig.add("a")

    async def run(client: ClientSession) -> None:
        status, text, _ = await ask(client, stream=True, do="break")
        assert status == 200
        assert text.startswith(EVENT.decode() * 2)
        last = json.loads(text.split("data: ")[-1])
        assert "the server of a ended in the middle of its answer" in last["error"]["message"]

    talk(rig, run)


def test_a_server_that_hangs_up_is_asked_once_more(rig: Rig) -> None:
    model = rig.add("a")

    async def run(client: ClientSession) -> None:
        assert (await ask(client, do="hang up once"))[0] == 200
        assert len(model.asked) == 2
        status, words = error(await ask(client, do="hang up"))
        assert (status, len(model.asked)) == (502, 4)
        assert "vllm-safe why a" in words

    talk(rig, run)


def test_a_server_that_is_gone_in_spite_of_its_state_is_started(rig: Rig) -> None:
    """Its main process was killed: nobody wrote that it is not ready any more."""
    model = rig.add("a")

    async def run(client: ClientSession) -> None:
        await ask(client)
        await model.stop(silently=True)
        assert (await ask(client))[0] == 200

    talk(rig, run)
    assert model.starts == 2


def test_an_answer_that_breaks_off_and_is_no_stream_is_broken_off_for_the_client(rig: Rig) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()

    async def run(client: ClientSession) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", rig.models["a"].port)
        rig.models["a"].say("ready")
        with pytest.raises(ClientPayloadError):
            await ask(client)
        server.close()

    rig.add("a")
    talk(rig, run)


# --- while a model loads


def test_a_stream_is_told_how_far_the_load_is(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rig.add("a")
    model.load = 0.5
    monkeypatch.setattr(gateway_handler, "_BEFORE_NEWS", 0.1)
    monkeypatch.setattr(gateway_handler, "_NEWS_EVERY", 0.1)

    async def run(client: ClientSession) -> None:
        status, text, answer = await ask(client, stream=True)
        assert (status, answer.content_type) == (200, "text/event-stream")
        comments = [line for line in text.split("\n\n") if line.startswith(":")]
        assert len(comments) >= 2
        assert comments[-1] == ": a: loading weights: 42 %, about 3 min left"
        assert text.endswith(EVENT.decode() * TOKENS)

    talk(rig, run)


def test_an_error_after_the_comments_is_an_event(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rig.add("a")
    model.load = 0.3
    monkeypatch.setattr(gateway_handler, "_BEFORE_NEWS", 0.05)

    async def run(client: ClientSession) -> None:
        text = (await ask(client, stream=True, do="no"))[1]
        assert text.endswith('data: {"error": {"message": "too\\nlong"}}\n\n')

    talk(rig, run)


def test_the_others_are_told_when_to_come_again(rig: Rig) -> None:
    rig.add("a").load = 2.0
    rig.wait = 0.2

    async def run(client: ClientSession) -> None:
        begin = time.monotonic()
        answer = await ask(client)
        assert time.monotonic() - begin < 1
        status, words = error(answer)
        assert (status, answer[2].headers["Retry-After"]) == (503, "180")
        assert answer[2].headers["Access-Control-Expose-Headers"] == "Retry-After"
        assert words == "a: loading weights: 42 %, about 3 min left; it was not ready within 0.2 s (gateway.wait)"

    talk(rig, run)


def test_a_client_that_does_not_wait_leaves_the_load_to_the_others(rig: Rig) -> None:
    model = rig.add("a")
    model.load = 0.4

    async def run(client: ClientSession) -> None:
        first, second = asyncio.create_task(ask(client)), asyncio.create_task(ask(client))
        await wait_until(lambda: model.starts)
        first.cancel()
        assert (await second)[0] == 200

    talk(rig, run)
    assert model.starts == 1
    assert len(model.asked) == 1


def test_a_start_that_failed_is_told_and_not_tried_again_until_something_changed(rig: Rig) -> None:
    model = rig.add("a")
    model.fails = "GPU 0 has not the memory"

    async def run(client: ClientSession) -> None:
        for _ in range(3):
            answer = await ask(client)
            status, words = error(answer)
            assert status == 503
            assert words == "a failed to start: GPU 0 has not the memory. See: vllm-safe why a"
            assert answer[2].headers["x-should-retry"] == "false"
        assert model.starts == 1
        model.fails = ""
        rig.config.write_text("changed")
        assert (await ask(client))[0] == 200

    talk(rig, run)


def test_a_refusal_holds_until_another_model_has_stopped(rig: Rig) -> None:
    model, other = rig.add("a"), rig.add("b")
    model.fails = "there is no room for a"

    async def run(client: ClientSession) -> None:
        await ask(client, "b")
        assert (await ask(client))[0] == 503
        assert (await ask(client))[0] == 503
        assert model.starts == 1
        model.fails = ""
        await other.stop()
        assert (await ask(client))[0] == 200

    talk(rig, run)


def test_a_start_that_fails_without_a_word_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rig.add("a")
    model.silent = True
    monkeypatch.setattr("vllm_safe.gateway.wake_socket._PAUSE", 0.05)

    async def run(client: ClientSession) -> None:
        for _ in range(2):
            status, words = error(await ask(client))
            assert status == 503
            assert words.startswith("systemd did not start a (")
        assert model.starts == 3

    talk(rig, run)


def test_without_a_socket_nothing_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.add("a")
    rig.add("b", on_demand=False)
    monkeypatch.setattr("vllm_safe.gateway.wake_socket._PAUSE", 0.05)

    async def run(client: ClientSession) -> None:
        rig.models["a"]._listening.close()  # type: ignore[union-attr]
        (rig.folder / "a.sock").unlink(missing_ok=True)
        assert "No such file" in error(await ask(client))[1]
        assert "systemctl start vllm@b" in error(await ask(client, "b"))[1]

    talk(rig, run)


# --- switches


def test_a_switch_drains_the_model_that_has_to_go(rig: Rig) -> None:
    first, second = rig.add("a", 60), rig.add("b", 60)

    async def run(client: ClientSession) -> None:
        await ask(client, "a")
        running = asyncio.create_task(ask(client, "a", do="wait"))
        await wait_until(lambda: first.running)
        switch = asyncio.create_task(ask(client, "b"))
        await asyncio.sleep(0.1)
        behind = asyncio.create_task(ask(client, "a"))  # comes after the request for `b`
        await asyncio.sleep(0.3)
        assert (second.starts, first.running, len(first.asked)) == (0, 1, 2)
        first.release.set()
        assert (await running)[0] == 200
        assert (await switch)[1]["model"] == "b"
        assert (await behind)[1]["model"] == "a"

    talk(rig, run)
    assert (first.starts, second.starts, first.gone) == (2, 1, 0)


def test_three_models_of_which_two_fit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_safe.gateway.switchboard.LOOK_EVERY", 0.01)  # loads take a fraction of a second here, not minutes
    models = [rig.add(name, 40) for name in "abc"]
    for model in models:
        model.load = 0.05

    async def run(client: ClientSession) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(number * 0.02)
            name = "abc"[number * 7 % 3]
            status, answer, _ = await ask(client, name, do="sleep", seconds=number % 5 * 0.02)
            assert (status, answer["model"]) == (200, name)

        await asyncio.gather(*(one(number) for number in range(60)))

    talk(rig, run)
    assert sum(len(model.asked) for model in models) == 60
    assert rig.cut == 0
