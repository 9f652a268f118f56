"""What touches the machine: steps that can say what they would do, and do it."""
