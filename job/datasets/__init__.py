"""Verified examples from anywhere, in one canonical order with one digest."""
