"""Does the lab itself tell the truth? Runs without agent, controller or charon."""
