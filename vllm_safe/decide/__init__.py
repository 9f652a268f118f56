"""Pure functions from the configuration and facts to a plan. They read and write nothing."""
