"""Code that changes the machine: steps that can be described, and carried out."""
