"""Tests of the removal of secrets from a report."""

from __future__ import annotations

import random
import time

import pytest

from vllm_safe.report.redact import redact

SECRET = "hunter2hunter2hunter2"  # noqa: S105 -- not a real password


@pytest.mark.parametrize(
    "line",
    [
        f"non-default args: {{'model': 'x', 'api_key': ['{SECRET}'], 'port': 8000}}",
        f"args: Namespace(api_key='{SECRET}', port=8000)",
        f'{{"api-key": "{SECRET}"}}',
        f"vllm serve x --api-key {SECRET} --port 8000",
        f"vllm serve x --api-key={SECRET}",
        f"VLLM_API_KEY={SECRET}",
        f"HF_TOKEN={SECRET}",
        f"HUGGING_FACE_HUB_TOKEN: {SECRET}",
        f"hub_token: {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"headers={{'Authorization': 'Bearer {SECRET}'}}",
        f"authorization: Basic {SECRET}==",
        f"curl -H 'bearer {SECRET}'",
        f"Cookie: session={SECRET}; other={SECRET}",
        f"https://user:{SECRET}@hub.example/x",
        f"GET https://cdn.example/x?Expires=1&Signature={SECRET}&Key-Pair-Id={SECRET}",
        f"X-Amz-Signature: ?X-Amz-Signature={SECRET}",
        f"password={SECRET}",
        f"aws_secret_access_key = {SECRET}",
        f"using hf_{SECRET}",
        f"using sk-proj-{SECRET}",
        f"using ghp_{SECRET}",
        f"using nvapi-{SECRET}",
        f"using eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
        f"a b --served-model-name x --hf-token {SECRET} --port 8000",
        f"x: y, client-secret: '{SECRET}'",
        f"env: my.api_key={SECRET}",
        f"postgres+psycopg2://user:{SECRET}@db/x",
        f"api_key=None, api_key={SECRET}",
        f'the "password" : "a \\" {SECRET}"',
        f"MY_SERVICE_TOKEN={SECRET}",
        f"AWS_SESSION_KEY: {SECRET}",
        f"/models/my_hf_{SECRET}/config.json",
        f"Received request cmpl-1: prompt: '{SECRET}', params: SamplingParams(n=1)",
        f'Request cmpl-1 details: prompt: "it\'s {SECRET}", prompt_token_ids: [1, 2]',
        f"messages=[{{'role': 'user', 'content': '{SECRET}'}}]",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        f"server log: MIIE{SECRET}uWz5yB7b0m3k9VqPzXr2dLh8sT1fGcJnE4aY==",
    ],
)
def test_a_secret_is_left_out(line: str) -> None:
    assert SECRET not in redact(line)
    assert "[removed]" in redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-23 22:20:50 [core.py:71] max_num_batched_tokens=8192, eos_token_id: 151645, pad_token='<|endoftext|>'",
        "Engine 000: Avg prompt throughput: 12.3 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.4%",
        "args: Namespace(api_key=None, hf_token=None, tokenizer='Qwen/Qwen2.5', trust_remote_code=False)",
        'INFO:     127.0.0.1:51432 - "POST /v1/completions HTTP/1.1" 200 OK',
        "Loading safetensors checkpoint shards:  41% Completed | 15/37 [12:03<17:40, 48.2s/it]",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Processed prompts: 100% prompt: 3, 'content-type': 'text', sha256: "
        + 32 * "0a"
        + " /srv/somebody/Projects/Models/Checkpoints2/Latest/Final/Part1",
        "GatedRepoError: 401 Client Error. Access to model is restricted. See https://huggingface.co/settings/tokens",
    ],
)
def test_what_is_no_secret_stays_as_it_is(line: str) -> None:
    assert redact(line) == line


# Pieces of lines that a program could print to make the removal slow, knowing the patterns.
PIECES = [
    *(
        "a-",
        "a.",
        "_a",
        "-",
        "_",
        ".",
        " ",
        "=",
        ": ",
        "'",
        '"',
        "\\",
        "[",
        "(",
        "/",
        "@",
        "A",
        "?",
        "://",
        "a://",
        "https://a:b",
        "-----BEGIN ",
    ),
    *(
        "secret",
        "secret_a",
        "api_key",
        "api_key ",
        "--api-key ",
        "--",
        "token_",
        "hub_token",
        "password'",
        "api_key='",
        "api_key=[",
        "None",
    ),
    *(
        "authorization ",
        "authorization:",
        "proxy-",
        "bearer ",
        "basic a",
        "cookie ",
        "cookie:",
        "?x-amz-",
        "&token",
        "eyJ-",
        "eyJ.",
        "eyJaaaaaaaa.",
    ),
    *("prompt: ", "prompt", "'content': ", "+/", "-----END ", "hf_", "sk-", "AIza", "xoxb-", "PRIVATE KEY"),
]


def _seconds(text: str) -> float:
    start = time.process_time()
    redact(text)
    return time.process_time() - start


def test_hostile_lines_take_no_more_time_than_others() -> None:
    """Each piece is repeated after each other one, up to 2000 characters, half of the longest line that is recorded."""
    for before in PIECES:
        for piece in PIECES:
            assert _seconds((before + piece * 2000)[:2000]) < 0.05, (before, piece)


def test_mixed_hostile_lines_take_no_more_time_than_others() -> None:
    chance = random.Random(0)  # noqa: S311 - seeded, so that the lines are the same each time
    for _ in range(300):
        unit = "".join(chance.choices(PIECES, k=chance.randint(2, 5)))
        assert _seconds((unit * 4000)[:4000]) < 0.1, unit
