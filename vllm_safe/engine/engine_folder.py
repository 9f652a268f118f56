"""`python3 -I FILE VERB ...`: changes in the folder of engines, done as user vllm, who owns it. Standard library only.

want STAGING REQUIREMENT [LEFT_OUT...]  write what an untested version is resolved from
alias STAGING NAME VERSION OTHER        let a distribution be found under another name too
amx STAGING                             have each process of an engine ask the kernel for AMX when it starts
place SOURCE TARGET                     rename a folder that is complete
switch ENGINES STAGING FOLDER BEFORE    put a tried engine in place; BEFORE, if not "", becomes `previous`; sweep the rest
exchange ENGINES                        swap `current` and `previous`
"""

import ctypes
import os
import shutil
import sys
from pathlib import Path

KEPT = {"current", "previous"}
CACHE = ".uv-cache"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# Linux lets a process use the AMX of its processor when it has asked (Documentation/arch/x86/xstate.rst), and forgets at exec. vLLM 0.32's
# attention for the CPU uses it unasked, and is killed by SIGILL. arch_prctl (158 on amd64), ARCH_REQ_XCOMP_PERM, XTILEDATA; where there
# is no AMX the kernel says no, and nobody minds.
ASK_FOR_AMX = "import ctypes, os; os.uname().machine == 'x86_64' and ctypes.CDLL(None).syscall(158, 0x1023, 18)\n"


def want(staging: Path, requirement: str, *left_out: str) -> None:
    """The requirement and what must not come with it, as files for uv."""
    (staging / "wanted.txt").write_text(f"{requirement}\n")
    (staging / "overrides.txt").write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in left_out))


def alias(staging: Path, name: str, version: str, other: str) -> None:
    """Write the metadata of a distribution without files: vLLM looks itself up as `vllm`, and its CPU build is named otherwise."""
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
    """Write what Python runs at the start of each process of this environment: a line of a .pth file that begins with `import`."""
    (_packages(staging) / "vllm_safe_amx.pth").write_text(ASK_FOR_AMX)


def place(source: Path, target: Path) -> None:
    """Rename; what stands in the way is an earlier try."""
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def switch(engines: Path, staging: Path, folder: str, before: str) -> None:
    """Make an engine the current one. A crash at any point leaves a `current` that works."""
    os.sync()  # the files of the engine before the link to it
    staging.rename(engines / folder)
    if before:
        _link(engines / "previous", before)
    _link(engines / "current", folder)
    _sweep(engines)


def exchange(engines: Path) -> None:
    """Swap both links in one step. Needs renameat2: Linux 3.15, and any file system that is fit for an engine."""
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
    """Remove engines that nothing leads to and no process has mapped, and the cache with them: it would keep their files."""
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
        except OSError:  # it ended, or is not ours
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
