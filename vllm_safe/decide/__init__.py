"""Pure functions from config and facts to a plan. Nothing here reads or writes anything."""
