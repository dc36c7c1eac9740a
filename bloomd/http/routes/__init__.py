"""The resources of the API, one file each. Every module lists its handlers in `HANDLERS`."""
