"""Figures as inline SVG, one module per subject."""
