"""The one parser of every URI and path setting: stores, folders and addresses of services."""
