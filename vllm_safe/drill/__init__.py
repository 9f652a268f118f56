"""The fire drill: a memory hog runs in the place of a model while logins are timed. Code beside the hog uses the standard library only."""
