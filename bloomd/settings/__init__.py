"""What bloomd may be told, where it was told, and what differs between two tellings."""
