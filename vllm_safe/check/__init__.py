"""The checklist of `vllm-safe check`, and the facts that it depends on."""
