"""The runs that ``record_outputs.py`` records."""
