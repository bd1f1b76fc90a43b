"""Resumable run directories: the manifest and the journal."""
