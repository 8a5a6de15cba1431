"""Programs that train the reference model in several frameworks, and what times them side by side."""
