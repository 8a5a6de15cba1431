"""Everything in the repository that is made of the code: `scripts/generate` writes it, `scripts/generate --check` compares."""
