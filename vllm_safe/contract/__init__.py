"""Data that processes hand each other: the launch file, the state file, the guard's file and a recorded run. Standard library only."""
