"""Spot machines: a place that takes its machines away, and later has others."""
