"""The facts and the output of `vllm-safe status` and `vllm-safe top`."""
