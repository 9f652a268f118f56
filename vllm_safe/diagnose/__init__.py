"""Diagnosis of why a model stopped: it turns a recorded run into a verdict with evidence and the setting to change. Pure."""
