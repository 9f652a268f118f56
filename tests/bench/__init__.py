"""`make bench`: figures, each as a ratio to something else that ran in the same run."""
