"""Basics that every other package may use: errors, sizes, paths, steps, and safe access to files and systemd."""
