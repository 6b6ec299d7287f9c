"""What a daemon serves on TCP: metrics, health and the status page, made from its records; docs/design/metrics.md."""
