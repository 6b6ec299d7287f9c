"""The points that a replica can be restored to: finding, listing and verifying them."""
