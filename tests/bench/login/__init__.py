"""The benchmark of issue 3: how long a login takes while a model server misbehaves, with each set-up a user might choose for protection."""
