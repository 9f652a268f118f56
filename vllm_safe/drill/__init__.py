"""A fire drill: a hog in the place of a model, while logins are timed. What runs beside the hog is standard library only."""
