"""Adapters to other people's harnesses."""
