"""Survival analysis: what is learned from times and events, and the figures that judge it. Knows no files."""
