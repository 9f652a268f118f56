"""Entry point of `python -I THIS_FOLDER list|get|describe ...`.

Python puts the folder on sys.path, so that modules beside this file are imported without the prefix `vllm_safe.`.
"""

import sys
from importlib import import_module

sys.exit(import_module("hub_download.download_command").main(sys.argv[1:]))
