"""What a role and the command line run with: what a role is, settings, endpoints, logs, health."""
