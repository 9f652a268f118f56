"""The errors that servers print when they die, and which of them is the cause. Standard library only: resident in each launcher."""
