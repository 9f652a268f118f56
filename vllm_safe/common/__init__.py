"""What every other package stands on: errors, sizes, paths, steps, and careful ways to files and systemd."""
