"""Looking for what is in folders of user vllm, who may plant links there: none is followed, on the way or at the end.

Not even to look: a link may lead into a network mount that hangs, and a look then takes for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

LOOK = os.O_PATH | os.O_CLOEXEC  # a descriptor of what is there, without opening it: no device or pipe is touched


def open_below(top: int, names: Iterable[str]) -> int:
    """A descriptor, the caller's to close, of a folder some levels below `top`. OSError if it is not there; ELOOP if a link is."""
    here = os.dup(top)
    for name in names:
        try:
            below = os.open(name, LOOK | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
        mode = os.fstat(here).st_mode
        if not stat.S_ISDIR(mode):
            os.close(here)
            code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), name)
    return here
