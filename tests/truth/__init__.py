"""What vLLM itself said of the memory of many models on real cards, and how far `vllm-safe plan` is from it.

`python -m tests.truth` prints a line for each start. `models.json` has the config.json of each model, and `starts.jsonl` what vLLM 0.32
reported of it; its first three lines are older, and of another version. A line with `transient_gib` had random weights.
`parameters.jsonl` has the bytes of all parameters and buffers of a rank in a line [model, tensor-parallel-size, pipeline-parallel-size,
stage, bytes]: vLLM's own classes, made by `initialize_model` on torch's device "meta" with the world size of its groups set to another,
before it repacks anything; so as many cards as one likes, and none, are enough.
"""
