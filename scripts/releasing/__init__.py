"""What scripts/release does: everything is checked, then built, then pushed; the image before the chart."""
