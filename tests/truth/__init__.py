"""What vLLM itself said of the memory of many models on real cards, and how far `vllm-safe plan` is from it.

`python -m tests.truth` prints a line for each start. `models.json` has the config.json of each model, `starts.jsonl` what vLLM reported.
"""
