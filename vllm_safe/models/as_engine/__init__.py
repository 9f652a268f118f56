"""Programs that the engine's own python runs as user vllm: standard library, the engine's packages, and nothing of vllm_safe."""
