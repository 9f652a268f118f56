"""Values to test with, made by the code that makes the real ones: runs, how they ended, and what killed them."""
