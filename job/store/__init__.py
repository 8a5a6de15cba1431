"""Whole objects under keys, in a folder or in object storage. Knows nothing about runs."""
