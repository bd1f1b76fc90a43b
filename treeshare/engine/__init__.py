"""Scheduling and the step loop."""
