"""The swapfile: facts, decision, steps, and the output of `vllm-safe swap status`."""
