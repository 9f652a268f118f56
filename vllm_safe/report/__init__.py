"""Reports: a recorded run as one HTML page, or drawn in a terminal."""
