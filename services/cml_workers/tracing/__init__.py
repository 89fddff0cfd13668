"""Traces by OpenTelemetry: spans at the ports of every role, exported by OTLP. Imported only where a process traces."""
