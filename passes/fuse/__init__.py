"""Fusion of several operators into the one they implement."""
