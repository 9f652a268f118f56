"""Access to files in folders of user vllm, which can contain hostile links. No link is followed, on the way or at the end.

Not even a stat() follows one: a link can lead into a network mount that hangs, and the call would then never return.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

LOOK = os.O_PATH | os.O_CLOEXEC  # a descriptor of a file that is not opened: no device or pipe is touched


def open_below(top: int, names: Iterable[str]) -> int:
    """Open a folder some levels below `top` and return its descriptor, which the caller closes.

    Raises OSError if the folder does not exist; its errno is ELOOP if one of the names is a link.
    """
    folder = os.dup(top)
    for name in names:
        try:
            child = os.open(name, LOOK | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = child
        mode = os.fstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            os.close(folder)
            code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), name)
    return folder
