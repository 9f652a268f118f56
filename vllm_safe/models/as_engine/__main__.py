"""`python -I THIS_FOLDER list|get ...`: python puts the folder on sys.path, so what is beside this file has no `vllm_safe.` before it."""

import sys
from importlib import import_module

sys.exit(import_module("hub_download.download_command").main(sys.argv[1:]))
