"""Mechanisms in other libraries' models."""
