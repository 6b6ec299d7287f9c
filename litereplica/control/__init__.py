"""The control plane: HTTP on a Unix socket of each daemon, writers and mounts alike; see docs/design/control.md."""
