"""What a plan of a model is made from: the first bytes of some of its files, so that nothing has to be fetched and nothing is written.

Of what came nothing is judged here: the caller does not trust this program, and checks all of it (vllm_safe/plan/headers_facts.py).
"""

from __future__ import annotations

import base64
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .hub import Hub, RepositoryFile

_WHOLE = frozenset({"config.json", "model.safetensors.index.json"})
_LARGEST = 2 << 20  # bytes of one of these: one of an enormous index says no more than the names of the files
_FIRST = 8 << 10  # bytes of each weight file that are asked for first: with the length of its header, and often all of it
_LARGEST_HEADERS = 8 << 20  # of all files together: only models with very many small experts have more
_LARGEST_ANSWER = 3 << 20  # bytes of text: the caller reads 4 MiB (sandbox/run_as_vllm.py)
_MOST_FILES = 400
_AT_ONCE = 8  # requests: each waits for two answers, and there is one for each file
_LENGTH = 8  # bytes at the beginning of a safetensors file that say how long its header is


def describe_files(hub: Hub, commit: str, files: list[RepositoryFile]) -> dict[str, Any]:
    """Return {"commit": SHA, "files": [[name, size], ...], "heads": {name: first bytes of the file, packed}}.

    There is no head of any weight file where all of them together would be too much.
    """
    weights = [file for file in files if file.name.endswith(".safetensors") and "/" not in file.name and file.size > _LENGTH]
    texts = [file for file in files if file.name in _WHOLE and 0 < file.size <= _LARGEST]
    heads = _read(hub, commit, [(file, 0, file.size) for file in texts])
    if len(weights) <= _MOST_FILES:
        heads |= _headers(hub, commit, weights)
    packed = {name: base64.b64encode(zlib.compress(data, 9)).decode() for name, data in heads.items()}
    if sum(map(len, packed.values())) > _LARGEST_ANSWER:
        packed = {name: text for name, text in packed.items() if name == "config.json"}
    return {"commit": commit, "files": [[file.name, file.size] for file in files], "heads": packed}


def _headers(hub: Hub, commit: str, files: list[RepositoryFile]) -> dict[str, bytes]:
    heads = _read(hub, commit, [(file, 0, min(_FIRST, file.size)) for file in files])
    ends = {file: _LENGTH + int.from_bytes(heads[file.name][:_LENGTH], "little") for file in files}
    missing = [(file, len(heads[file.name]), end) for file, end in ends.items() if len(heads[file.name]) < end <= file.size]
    if sum(end - start for _, start, end in missing) > _LARGEST_HEADERS:
        return {}
    rest = _read(hub, commit, missing)
    return {file.name: (heads[file.name] + rest.get(file.name, b""))[: max(_LENGTH, end)] for file, end in ends.items()}


def _read(hub: Hub, commit: str, parts: list[tuple[RepositoryFile, int, int]]) -> dict[str, bytes]:
    """Return the parts of files, each from one byte to before another, by the names of the files."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda part: hub.read(commit, *part), parts)
        return {file.name: data for (file, _, _), data in zip(parts, found, strict=True)}
