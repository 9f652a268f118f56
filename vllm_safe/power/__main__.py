"""The program that changes the power limit of a GPU, run by its path with python3 -I, as that in driver/."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from vllm_safe.power.limit_program import main

main()
