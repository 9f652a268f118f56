"""The program that asks NVML, run by its path with python3 -I: only there is NVIDIA's binding imported, which takes 50 ms and 6 MB."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from vllm_safe.driver.card_program import main

main()
