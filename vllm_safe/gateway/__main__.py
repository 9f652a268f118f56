"""The program of vllm-gateway.service, run by its path with Debian's Python: its aiohttp is not in the environment of the package."""

import importlib.util
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - as in the guard
if importlib.util.find_spec("aiohttp") is None:
    sys.stderr.write("vllm-gateway: Debian's python3-aiohttp is not installed\n  Install it: apt install python3-aiohttp\n")
    sys.exit(2)
# The gateway speaks no TLS: without OpenSSL it is 5 MB smaller.
sys.modules["ssl"] = sys.modules["_hashlib"] = None  # type: ignore[assignment]

from vllm_safe.gateway.gateway_main import main  # noqa: E402 - it imports what the line above is about

sys.exit(main())
