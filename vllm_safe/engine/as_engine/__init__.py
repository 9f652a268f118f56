"""What runs in the engine's processes; PYTHONPATH names this folder. It imports the standard library and the engine, not vllm_safe."""
