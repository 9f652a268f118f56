"""Packages for tests of upgrades and builds: the sources as git has them, the last release, and a future version of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.beds import cache
from tests.beds.machine import BedError

REPOSITORY = Path(__file__).parents[2]
LAST_RELEASE = "75f5c57"  # the commit of 0.2.0
NEXT = "99.0"  # a version that is above every other for a long time


def sources(archive: Path, commit: str = "") -> None:
    """Pack the files that git knows, or those of `commit`, into a tar archive."""
    git = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY)]
    if commit:
        done = subprocess.run([*git, "archive", f"--output={archive}", commit], check=False, capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"no commit {commit} in this repository (a shallow clone? git fetch --unshallow): {done.stderr}")
        return
    known = subprocess.run([*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, capture_output=True).stdout
    pack = ["tar", "--create", "--null", "--ignore-failed-read", "--files-from=-", f"--file={archive}"]
    subprocess.run(pack, cwd=REPOSITORY, input=known, check=True, stderr=subprocess.DEVNULL)
    # The archive has no git: the commit is written into it, as `make deb` does.
    with TemporaryDirectory() as folder:
        commit_file = Path(folder) / "debian/commit"
        commit_file.parent.mkdir()
        commit_file.write_text(
            subprocess.run([REPOSITORY / "debian/version", "--commit"], check=True, capture_output=True, text=True).stdout
        )
        subprocess.run(["tar", "--append", f"--file={archive}", f"--directory={folder}", "debian/commit"], check=True)


def wheelhouse() -> Path:
    """Return the folder of the wheels that a build needs."""
    done = subprocess.run([REPOSITORY / "debian/wheelhouse"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def last_release() -> Path:
    """Return the package of the last release, built once from its sources."""
    return cache.cached("releases", LAST_RELEASE, _build_last_release) / "vllm-safe.deb"


def _build_last_release(folder: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    sources(folder / "sources.tar", LAST_RELEASE)
    subprocess.run(["tar", "--extract", f"--file={folder}/sources.tar", f"--directory={tree}"], check=True)
    done = subprocess.run(["dpkg-buildpackage", "--build=binary", "--no-sign"], cwd=tree, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"the last release does not build:\n{done.stdout}{done.stderr}")
    (built,) = folder.glob("*.deb")
    for made in folder.iterdir():
        if made.is_dir():
            shutil.rmtree(made)
        elif made != built:
            made.unlink()
    built.rename(folder / "vllm-safe.deb")


def unpacked(deb: Path, folder: Path, version: str = NEXT) -> Path:
    """Extract a package into `folder`, with another version. Its maintainer scripts and its control file are in DEBIAN/."""
    subprocess.run(["dpkg-deb", "--raw-extract", deb, folder], check=True)
    control = folder / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    return folder


def packed(folder: Path, deb: Path) -> Path:
    """Build the package from such a folder."""
    # With weak, quick compression: nobody downloads it.
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", folder, deb], check=True, stdout=subprocess.DEVNULL)
    return deb
