"""Managed jobs of SkyPilot, on the spot machines of any cloud."""
