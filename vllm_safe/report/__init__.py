"""A recorded run as one page of HTML, or drawn in a terminal."""
