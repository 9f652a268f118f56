"""`make bench`: figures, each as a ratio to something that ran beside it in the same run."""
