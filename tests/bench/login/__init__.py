"""Issue 3's benchmark: how long a login takes while a model server misbehaves, under what a user might pick to protect the machine."""
