"""treeshare: sampling workloads as trees."""
