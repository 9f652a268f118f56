"""The programs that ask NVML, run by their path with python3 -I: only there is NVIDIA's binding imported, which takes 50 ms and 6 MB.

Without an argument, the facts about the driver and its cards are printed once; with `feed`, those that change are printed each second.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from vllm_safe.driver.card_feed import feed
from vllm_safe.driver.card_program import main

(feed if sys.argv[1:] == ["feed"] else main)()
