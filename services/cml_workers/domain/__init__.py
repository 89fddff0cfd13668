"""The worker and its rules: plain functions of values. Nothing here waits, reads a clock or logs."""
