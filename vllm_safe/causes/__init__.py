"""What servers print when they die, and which line of it is the cause. Standard library only: it is resident in each launcher."""
