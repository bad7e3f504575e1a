"""A water tank for hagane."""
