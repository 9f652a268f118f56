"""The program of vllm-safe-guard.service, run by its path with python3 -I -S: modules that are not imported need no memory."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - pathlib is 2 MB

from vllm_safe.guard.guard_main import main

sys.exit(main())
