"""Program `python3 -I FILE VERB ...`: it changes the folder of engines as user vllm, who owns it. Standard library only.

want STAGING REQUIREMENT [LEFT_OUT...]  write the input from which an untested version is resolved
alias STAGING NAME VERSION OTHER        register a distribution under another name as well
amx STAGING                             make each process of an engine request AMX from the kernel when it starts
place SOURCE TARGET                     rename a complete folder
switch ENGINES STAGING FOLDER BEFORE    put a tried engine in place; BEFORE, if not "", becomes `previous`; delete unused engines
exchange ENGINES                        exchange `current` and `previous`
"""

import ctypes
import os
import shutil
import sys
from pathlib import Path

KEPT = {"current", "previous"}
CACHE = ".uv-cache"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# Linux allows a process to use AMX only after a request (Documentation/arch/x86/xstate.rst), and revokes the permission at exec. The CPU
# attention of vLLM 0.32 uses AMX without the request, and is killed by SIGILL. The request is arch_prctl (158 on amd64) with
# ARCH_REQ_XCOMP_PERM and XTILEDATA; without AMX the kernel refuses it, which does no harm.
ASK_FOR_AMX = "import ctypes, os; os.uname().machine == 'x86_64' and ctypes.CDLL(None).syscall(158, 0x1023, 18)\n"


def want(staging: Path, requirement: str, *left_out: str) -> None:
    """Write the requirement, and overrides for the packages to leave out, as files for uv."""
    (staging / "wanted.txt").write_text(f"{requirement}\n")
    (staging / "overrides.txt").write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in left_out))


def alias(staging: Path, name: str, version: str, other: str) -> None:
    """Write the metadata of a distribution without files: vLLM looks itself up as `vllm`, but its CPU build has another name."""
    folder = _packages(staging) / f"{name}-{version}.dist-info"
    folder.mkdir()
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {other}, found as {name}\nRequires-Dist: {other}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: vllm-safe\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "INSTALLER": "vllm-safe\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text)
    (folder / "RECORD").write_text("".join(f"{folder.name}/{file},,\n" for file in (*files, "RECORD")))


def amx(staging: Path) -> None:
    """Write the code that Python runs at the start of each process of this environment: a .pth line that begins with `import`."""
    (_packages(staging) / "vllm_safe_amx.pth").write_text(ASK_FOR_AMX)


def place(source: Path, target: Path) -> None:
    """Rename a folder, and replace what an earlier attempt left at the target."""
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def switch(engines: Path, staging: Path, folder: str, before: str) -> None:
    """Make an engine the current one. A crash at any point leaves a working `current`."""
    os.sync()  # the files of the engine must be on disk before the link to it
    staging.rename(engines / folder)
    if before:
        _link(engines / "previous", before)
    _link(engines / "current", folder)
    _sweep(engines)


def exchange(engines: Path) -> None:
    """Exchange both links atomically. Needs renameat2: Linux 3.15, and a file system that supports it, as all suitable ones do."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = [os.fsencode(engines / name) for name in ("current", "previous")]
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(engines))


def _packages(staging: Path) -> Path:
    return next((staging / "lib").glob("python3*")) / "site-packages"


def _link(link: Path, target: str) -> None:
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _sweep(engines: Path) -> None:
    """Remove engines without a link to them that no process has mapped, and the cache, whose hard links would keep their files."""
    kept = {str((engines / link).readlink()) for link in KEPT if (engines / link).is_symlink()}
    spare = [entry for entry in engines.iterdir() if not entry.is_symlink() and entry.name not in kept and not entry.name.startswith(".")]
    spare = [entry for entry in spare if not _in_use(entry)]
    for entry in (*spare, engines / CACHE) if spare else ():
        shutil.rmtree(entry, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f" {folder}/" in (process / "maps").read_text(errors="replace"):
                return True
        except OSError:  # the process ended, or belongs to another user
            continue
    return False


def main() -> None:
    """Run one verb."""
    verb, *words = sys.argv[1:]
    if verb == "want":
        want(Path(words[0]), *words[1:])
    elif verb == "alias":
        alias(Path(words[0]), *words[1:])
    elif verb == "amx":
        amx(Path(words[0]))
    elif verb == "place":
        place(Path(words[0]), Path(words[1]))
    elif verb == "switch":
        switch(Path(words[0]), Path(words[1]), words[2], words[3])
    elif verb == "exchange":
        exchange(Path(words[0]))
    else:
        sys.exit(f"{__doc__}")


if __name__ == "__main__":
    main()
