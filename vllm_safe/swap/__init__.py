"""The swapfile: facts, the decision, the steps, and what `vllm-safe swap status` shows."""
