"""Problems, checking in a sandbox, and pass@k."""
