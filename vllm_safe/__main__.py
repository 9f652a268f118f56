"""`python -m vllm_safe`: the command line from a source tree."""

from vllm_safe.cli.entry import main

main()
