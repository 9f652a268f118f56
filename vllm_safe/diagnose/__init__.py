"""Why a model stopped: a recorded run in, a verdict with its evidence and the setting to change out. Pure."""
