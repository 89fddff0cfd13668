"""A process: settings, logs, health, the registry of roles, signals."""
