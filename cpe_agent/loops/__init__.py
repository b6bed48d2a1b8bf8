"""trio glue: wait for a change, call core, call a port, set a Cell."""
