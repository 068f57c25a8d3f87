"""Devices and processes of a run: the mesh, what lies where on it, and who agrees."""
